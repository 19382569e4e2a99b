"""Command lines: argparse and plain checks, no torch, so that --help answers at once."""
