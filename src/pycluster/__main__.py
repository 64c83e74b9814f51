"""The command `pycluster`, also as `python -m pycluster`."""

import sys


def main() -> None:
    """Run the command line.

    Raises:
      SystemExit: always, with the status that cli.py describes.
    """
    try:
        from .cli import app

        app(prog_name="pycluster")
    except ModuleNotFoundError as exception:
        if exception.name not in ("typer", "rich", "watchfiles"):  # of the extra `cli`
            raise
        sys.exit(f"pycluster: {exception.name} is not installed: pip install 'pycluster[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)  # before there was anything to end


if __name__ == "__main__":
    main()
