"""`python -m coordinator monitor ...`"""

from coordinator.cli import main

main()
