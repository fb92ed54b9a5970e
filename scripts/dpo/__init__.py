"""What the entry scripts share: one idea per file.

Imported by each of them before any library that would speak as it is imported.
"""

from dpo.core.quiet import hush

hush()
