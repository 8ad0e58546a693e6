"""``python -m tests.campaigns``: see :mod:`tests.campaigns.table`."""

from tests.campaigns.table import main

if __name__ == "__main__":
    main()
