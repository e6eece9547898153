"""`python -m peer` is the `barnraise` command."""

from peer.cli import barnraise

if __name__ == "__main__":
    barnraise()
