"The command line, for `python -m medseg`."

from medseg.cli.entry import main

if __name__ == "__main__":
    main()
