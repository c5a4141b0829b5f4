"""The job store on SQLAlchemy: SQLite for one host, PostgreSQL for many.

The contract is `storage.jobstore.JobStore`; each file here holds the methods of one station of a job's path,
in the order of the path.
"""

from __future__ import annotations

from storage.sqljobstore.browsing import Browsing
from storage.sqljobstore.claiming import Claiming
from storage.sqljobstore.compacting import Compacting
from storage.sqljobstore.dispatching import Dispatching
from storage.sqljobstore.keeping import Keeping
from storage.sqljobstore.liveness import Liveness
from storage.sqljobstore.reading import Reading
from storage.sqljobstore.selecting import Selecting
from storage.sqljobstore.steering import Steering
from storage.sqljobstore.submitting import Submitting
from storage.sqljobstore.surveying import Surveying
from storage.sqljobstore.telling import Telling
from storage.sqljobstore.tuning import Tuning

__all__ = ["SqlJobStore"]


class SqlJobStore(
    Submitting,
    Reading,
    Selecting,
    Browsing,
    Surveying,
    Steering,
    Dispatching,
    Claiming,
    Liveness,
    Tuning,
    Telling,
    Keeping,
    Compacting,
):
    """Implements `storage.jobstore.JobStore`; thread-safe, at most three connections."""
