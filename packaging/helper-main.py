"""Entry point of the installed helper: /usr/bin/python3 -I /usr/local/lib/accelerd-helper"""

import sys

from accelerd.helper.__main__ import main

sys.exit(main())
