"""What the client knows of the cluster, and where it should try next. Decides only; no I/O.

Beliefs about the leader are ordered by term. Within a term there is at most one leader, so a
claim is doubted only when that node itself denies it; then the same claim by others, who have not
heard yet, is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from quorate.base.frames import LeaderInfo, MemberInfo, Welcome
from quorate.client.endpoints import Endpoint, parse_endpoint
from quorate.client.settings import BACKOFF_S_MAX, BACKOFF_S_MIN
from quorate.errors import InvalidArgumentError


class Routing:
    """*endpoints*: as given by the user, at least one. *random*: spreads the backoff. *learns*:
    whether members' own addresses may be tried as well."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        random: Random,
        cluster: str = "",
        *,
        learns: bool = True,
    ) -> None:
        self._learns = learns
        self._given = list(endpoints)
        self._random = random
        self._node_of: dict[Endpoint, int] = {}  # who answered there, when last connected
        self._members: dict[int, Endpoint] = {}
        self._unlucky: dict[Endpoint, None] = {}  # in the order in which they failed
        self._denied = (0, 0)  # (leader, term) that this leader itself denied
        self._backoff_s = BACKOFF_S_MIN
        self.cluster = cluster  #: "" until the first welcome, unless the user named it
        self.leader = 0  #: node id, 0 if unknown
        self.term = 0
        self.members: tuple[MemberInfo, ...] = ()

    def welcomed(self, endpoint: Endpoint, welcome: Welcome, *, relay: bool) -> None:
        """A node answered at *endpoint*; through a relay it is not that endpoint's own node."""
        self.cluster = welcome.cluster
        self._unlucky.pop(endpoint, None)
        if not relay:
            self._node_of[endpoint] = welcome.node
        self.informed(welcome, welcome.node)

    def informed(self, news: Welcome | LeaderInfo, teller: int) -> bool:
        """Weigh what node *teller* says of leader, term and members. True: something changed."""
        before = (self.leader, self.term, self.members)
        claim = (news.leader, news.term)
        if news.term > self.term:
            self.leader, self.term, self.members = news.leader, news.term, news.members
        elif news.term == self.term:
            if news.leader != 0 and (claim != self._denied or teller == news.leader):
                self.leader = news.leader
            elif news.leader == 0 and teller == self.leader:
                self.denied(teller)
            # Equal terms do not order two lists of members; the leader's own is the newest.
            if teller == self.leader or not self.members:
                self.members = news.members
        if self.members is not before[2]:
            self._learn(self.members)
        return before != (self.leader, self.term, self.members)

    def denied(self, node: int) -> bool:
        """*node* itself says that it does not lead. True: it was thought to."""
        if node != self.leader:
            return False
        self._denied = (self.leader, self.term)
        self.leader = 0
        return True

    def _learn(self, members: Sequence[MemberInfo]) -> None:
        self._members.clear()
        for member in members if self._learns else ():
            try:
                self._members[member.node] = parse_endpoint(member.address)
            except InvalidArgumentError:  # such as the empty address of a node that never listens
                continue
        known = {*self._given, *self._members.values()}
        self._node_of = {place: node for place, node in self._node_of.items() if place in known}
        self._unlucky = {place: None for place in self._unlucky if place in known}

    # --- where to go ---------------------------------------------------------------------------

    def towards(self, node: int) -> list[Endpoint]:
        """Places where *node* should be found: first where it answered before (the user's endpoint
        may pass a port mapping that the member's own address does not know)."""
        places = [place for place, known in self._node_of.items() if known == node]
        address = self._members.get(node)
        if address is not None and address not in places:
            places.append(address)
        return places

    def towards_leader(self) -> list[Endpoint]:
        """Places where the leader should be found."""
        return self.towards(self.leader) if self.leader != 0 else []

    def round(self, *, but: Endpoint | None = None) -> list[Endpoint]:
        """Every known place once, except *but*: the leader's first, those that failed since they
        last answered at the end."""
        places = [*self.towards_leader(), *self._given, *self._members.values()]
        places = [place for place in dict.fromkeys(places) if place not in self._unlucky]
        return [place for place in (*places, *self._unlucky) if place != but]

    def round_aside(self) -> list[Endpoint]:
        """As ``round``, the leader's last of those that did not fail, the others in any order."""
        leaders = self.towards_leader()
        known = [place for place in self.round() if place not in self._unlucky]
        others = [place for place in known if place not in leaders]
        self._random.shuffle(others)
        return [*others, *(place for place in known if place in leaders), *self._unlucky]

    def failed(self, endpoint: Endpoint) -> None:
        """Try *endpoint* last, next time."""
        self._unlucky.pop(endpoint, None)
        self._unlucky[endpoint] = None

    # --- patience ------------------------------------------------------------------------------

    def backoff_s(self) -> float:
        """Seconds to wait before the next round; doubles, with jitter of one half, so that the
        clients of a dead leader do not all come at once."""
        delay = self._backoff_s
        self._backoff_s = min(2 * delay, BACKOFF_S_MAX)
        return delay * (0.5 + self._random.random() / 2)

    def settled(self) -> None:
        """The last connection worked for a while: begin with the smallest backoff again."""
        self._backoff_s = BACKOFF_S_MIN
