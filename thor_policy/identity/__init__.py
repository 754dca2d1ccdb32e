"""Who is asking, and what they may do: CURVE keys of callers over tcp, roles of all callers.

`keys` owns the files, `roles` the judgement.
"""

from thor_policy.identity.keys import Held, Holder, KeyRing, Keys, Pair, held
from thor_policy.identity.roles import ROLE_OF, Roles, authorise

__all__ = ["ROLE_OF", "Held", "Holder", "KeyRing", "Keys", "Pair", "Roles", "authorise", "held"]
