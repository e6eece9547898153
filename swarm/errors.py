"""The tree of errors.

BarnraiseError
├── UserError            something the person at the keyboard can mend; printed as one line, exit code 2
│   ├── ConfigError      a bad value or key in a config, manifest, invite or option
│   ├── DataError        data or tokenizer missing, unreadable, or not what the manifest names
│   └── StateError       this peer's files are in use, unreadable, or the disk is full
├── NetworkError         the network did not do what was asked; the caller may try elsewhere
│   ├── Unreachable      nobody answers at that peer or address
│   └── TimedOut         the deadline passed
├── RemoteError          another peer sent something wrong; costs that peer the connection, never the process
│   ├── MalformedBytes   bytes that do not decode: truncated, too long, too deep, wrong type or range
│   ├── BadSignature     a signature, run, purpose or author that does not fit
│   └── Refusal          the other side understood and said no, with its reason
└── LocalError           a bug of ours: an impossible event or a broken invariant; it rises
"""


class BarnraiseError(Exception):
    """The root of everything this project raises on purpose."""


class UserError(BarnraiseError):
    """What the person at the keyboard can mend. The message names the value, the limit and what to do."""


class ConfigError(UserError):
    """A bad value or key in a config, manifest, invite or option."""


class DataError(UserError):
    """Data or a tokenizer that is missing, unreadable, or not the one that the manifest names."""


class StateError(UserError):
    """This peer's files are in use by another process, unreadable, or the disk is full."""


class NetworkError(BarnraiseError):
    """The network did not do what was asked."""


class Unreachable(NetworkError):
    """Nobody answers at that peer or address."""


class TimedOut(NetworkError):
    """The deadline passed before the answer came."""


class RemoteError(BarnraiseError):
    """Another peer sent something wrong."""


class MalformedBytes(RemoteError):
    """Bytes that do not decode: truncated, too long, too deep, of a wrong type or range."""


class BadSignature(RemoteError):
    """A signature, run, purpose or author that does not fit the bytes."""


class Refusal(RemoteError):
    """The other side understood the request and said no; the message is its reason."""


class LocalError(BarnraiseError):
    """A bug of ours: an impossible event or a broken invariant."""
