"""`python -m dmthin` is the `dmthin` command."""

import sys

from dmthin.cli import main

sys.exit(main())
