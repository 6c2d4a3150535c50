"""`python -m medssl`."""

from medssl.cli import main

if __name__ == "__main__":
    main()
