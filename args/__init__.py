"""Command lines: argparse and checks of values, without torch, so that --help is fast."""
