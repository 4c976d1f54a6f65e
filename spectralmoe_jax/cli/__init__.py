"""The command `spectralmoe`: subcommands in three modules, each imported only when needed."""
