"""`--plugins small_rows_plugin`, with this folder on PYTHONPATH: the small rows, for a script in its own process."""

import small_rows

small_rows.apply()
