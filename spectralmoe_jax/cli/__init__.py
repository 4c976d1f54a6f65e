"""The command `spectralmoe`: one file for each subcommand, loaded when it is called."""
