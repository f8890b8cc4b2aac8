"""`python -m controlnet` is the command `controlnet`."""

from controlnet.cli.main import main

if __name__ == "__main__":
    main()
