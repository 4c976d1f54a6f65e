"""The command `spectralmoe`: subcommands in three modules, each imported when one of its own is called."""
