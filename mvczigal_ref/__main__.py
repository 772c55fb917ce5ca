"""`python -m mvczigal_ref` is `mvczigal`; a launcher of several processes needs the former."""

import sys

from mvczigal_ref.cli import main

if __name__ == "__main__":
    sys.exit(main())
