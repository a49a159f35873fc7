"""``python -m kvstore_cli`` is the ``kvstore`` command, where that is on no PATH."""

import sys

from kvstore_cli.main import main

sys.exit(main())
