"""`python -m dumbo`: the command line, also what torchrun starts on every rank."""

from dumbo.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
