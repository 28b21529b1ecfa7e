import sys

from psd.cli import main

sys.exit(main())
