"""Rule fetch: get one file that data are made from."""

import sys
from pathlib import Path

from dmdpipe.data.fetching import fetch
from dmdpipe.errors import UserError

try:
    fetch(Path(snakemake.output[0]))
except UserError as error:
    Path(snakemake.log[0]).write_text(f"{error}\n")
    sys.exit(1)
