"""What the sub-commands of `msfl` do, one file per command."""
