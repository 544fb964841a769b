"""The order-by-order stream behind relays: whoever comes, hops or returns has the engine's queues.

Lines are cut and messages are late; gateways remember little, so that some are overtaken. What a
client holds is compared with the twin's queues at the position it was told.
"""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from exchange.v1 import market_data_pb2 as of
from mdgateway.config import GatewayConfig
from tests.property.drawing import Stream, effort, streams
from tests.property.test_order_stream import Client, Key, Venue, newcomer, venue_of
from tests.unit.market_data_line import Line

Queues = dict[Key, list[tuple[int, int]]]


class Tree:
    """A venue's gateway, one that follows it, and one that follows that one."""

    def __init__(self, venue: Venue, capacity: int) -> None:
        config = GatewayConfig(
            (venue.publisher.pair,),
            upstream="127.0.0.1:1",
            level_capacity=4_096,
            order_event_capacity=capacity,
        )
        self.venue = venue
        self.lines = [Line(venue, venue.publisher, config)]
        self.lines.append(Line(venue, self.lines[0].relay, config))
        self.gateways = [venue.publisher, *(line.relay for line in self.lines)]
        self.history: dict[int, Queues] = {}
        """The queues at each position at which the first gateway stood."""

    def step(self) -> None:
        self.venue.step()
        orders = self.venue.publisher.orders
        assert orders is not None
        self.history[orders.position] = self.venue.queues()

    def carry(self, number: int) -> None:
        self.lines[number].heal()
        self.lines[number].carry()

    def carry_all(self) -> None:
        """Carry until the last gateway has all that the first one has."""
        for _ in range(4):
            self.carry(0)
            self.carry(1)


def check(client: Client, tree: Tree, told: dict[int, of.OrderEvent]) -> None:
    """Read, then compare orders with the twin's, and events with what others were told."""
    client.read()
    if client.settled:
        client.compare(tree.history[client.position])
    for position, event in client.told.items():
        assert told.setdefault(position, event) == event


@given(streams(), st.data())
@effort(40)
def test_clients_anywhere_in_a_tree_have_the_engines_queues(
    stream: Stream, data: st.DataObject
) -> None:
    with venue_of(replace(stream.universe.instrument, event_capacity=64)) as venue:
        tree, clients, told = Tree(venue, 64), list[Client](), dict[int, of.OrderEvent]()
        what = st.sampled_from(["apply", "apply", "step", "carry", "cut", "come", "hop", "read"])
        for command, time_ns in stream:
            venue.apply(command, time_ns)
            number = data.draw(st.integers(0, 1))
            match data.draw(what):
                case "step":
                    tree.step()
                case "carry":
                    tree.step()
                    tree.carry(number)
                case "cut":
                    tree.lines[number].lose()
                case "come" if len(clients) < 4:
                    gateway = tree.gateways[number + 1]
                    if gateway.orders is not None:
                        clients.append(Client(venue, gateway))
                case "hop":
                    for client in clients:
                        gateway = data.draw(st.sampled_from(tree.gateways))
                        if gateway.orders is not None:
                            client.source = gateway
                            client.subscribe()
                case "read":
                    for client in clients:
                        check(client, tree, told)
        tree.step()
        tree.carry_all()
        for gateway in tree.gateways[1:]:
            clients.append(Client(venue, gateway))
        for client in clients:
            check(client, tree, told)
            client.compare(venue.queues())
            assert client.settled
        for gateway in tree.gateways[1:]:
            assert gateway.orders is not None
            assert gateway.orders.contradiction_count == 0


@given(streams())
@effort(20)
def test_a_relay_from_the_start_tells_the_same_messages(stream: Stream) -> None:
    with venue_of(replace(stream.universe.instrument, event_capacity=4_096)) as venue:
        tree = Tree(venue, 4_096)
        tree.step()
        tree.carry_all()
        clients = [Client(venue, gateway) for gateway in tree.gateways]
        for command, time_ns in stream:
            venue.apply(command, time_ns)
            tree.step()
            tree.carry_all()
            messages = [list[bytes]() for _ in clients]
            for client, said in zip(clients, messages, strict=True):
                while (content := client.subscription.take(venue.now_ns)) is not None:
                    said.append(content)
                    client.take(of.StreamOrdersResponse.FromString(content))
                client.compare(venue.queues())
            assert messages[0] == messages[1] == messages[2]
        newcomer(venue)
        for gateway in tree.gateways[1:]:
            late = Client(venue, gateway)
            late.read()
            late.compare(venue.queues())
            assert not late.unknown
