"""What the Snakefile imports: the validated configuration and the command line of each case."""
