"""The command `spectralmoe`: subcommands by topic, loaded when they are called."""
