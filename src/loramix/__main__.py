"""`python -m loramix` is the command `loramix`."""

from loramix.cli.main import main

if __name__ == "__main__":
    main()
