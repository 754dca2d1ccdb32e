"""A generator of situations for each pack that ships.

Owns the table of domains. Each module reads its words from the YAML file beside it.
"""

from __future__ import annotations

from training_data.domains import agent, device, discount, invoice, team, trade
from training_data.situations import Domain

#: The domains, by the name of their pack.
DOMAINS: dict[str, Domain] = {
    domain.PACK: domain for domain in (agent, device, discount, invoice, team, trade)
}
