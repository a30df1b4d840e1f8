"""An agent on another QUIC stack than the project's, written from docs/wire.md alone.

    python agent.py --relay 127.0.0.1:4433 --relay-id atlas_... --seed 01...01 --accept atlas_...
    python agent.py --relay 127.0.0.1:4433 --relay-id atlas_... --seed 02...02 --connect atlas_...

With --accept it announces itself and lets that peer connect, with --connect it asks for that peer. Then it carries bare
datagrams. It says what happens in lines on its standard output:

    announced | paired ROLE MAX_DATAGRAM ADDRESS | moved ADDRESS | received HEX | limited PACKETS BYTES
    refused CODE MESSAGE | ended REASON | closed

and takes orders in lines on its standard input: `send HEX`, `rebind` (goes on with another data socket), `leave`.
"""

import argparse
import asyncio
import datetime
import hashlib
import hmac
import ipaddress
import socket
import ssl
import struct
import sys
import time
from dataclasses import dataclass

import msgpack
from aioquic.asyncio import connect
from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

# Frames.
MAGIC, VERSION, MAX_PAYLOAD = b"\xac\x01", 1, 64 * 1024
HELLO, HELLO_ACK, VERIFY, VERIFY_ACK = 0x01, 0x02, 0x03, 0x04
ANNOUNCE, CONNECT, READY, RELAY_ERROR = 0x30, 0x31, 0x32, 0x33
ERROR, PING, PONG, DISCONNECT = 0xE0, 0xF0, 0xF1, 0xFF

# QUIC.
ALPN, SERVER_NAME, DIAL_S, KEEP_ALIVE_S, IDLE_S, HANDSHAKE_S = "atlas/1", "atlas", 5, 10, 30, 10

# Bind.
BIND_LEN, SIGNED_LEN = 96, 80
BIND, CHALLENGE, PROOF, BOUND = 1, 2, 3, 4
RETRY_S, MAX_RETRY_S, NAT_S, UNHEARD_S = 0.25, 2.0, 15.0, 1.0
NO_COOKIE = bytes(16)


class Fault(Exception):
    """The other side does not keep to the wire, or says no."""


def say(*words):
    print(*words, flush=True)


def unix_s():
    return int(time.time())


class Key:
    """A node's key, its id, and the certificate over it."""

    def __init__(self, seed):
        self.private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = self.private.public_key().public_bytes_raw()
        self.node_id = node_id(self.public)

    def certificate(self):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "agent")])
        now = datetime.datetime.now(datetime.timezone.utc)
        builder = x509.CertificateBuilder(
            issuer_name=name,
            subject_name=name,
            public_key=self.private.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),
            not_valid_after=now + datetime.timedelta(days=3650),
        )
        return builder.sign(self.private, None)


def node_id(public):
    return "atlas_" + hashlib.sha256(public).hexdigest()


def key_in(certificate):
    """The 32 bytes of an Ed25519 key in a certificate."""
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    prefix = bytes.fromhex("302a300506032b6570032100")
    if len(info) != 44 or not info.startswith(prefix):
        raise Fault("the relay's certificate is not over an Ed25519 key")
    return info[len(prefix):]


class Control:
    """The first stream of the control connection: frames in and out."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    def send(self, kind, **fields):
        listed = {key: list(value) if isinstance(value, bytes) else value for key, value in fields.items()}
        payload = msgpack.packb(listed)
        self.writer.write(MAGIC + bytes([VERSION, kind]) + struct.pack(">I", len(payload)) + payload)

    async def receive(self):
        header = await self.reader.readexactly(8)
        if header[:2] != MAGIC or header[2] != VERSION:
            raise Fault(f"not a frame: {header.hex()}")
        (length,) = struct.unpack(">I", header[4:])
        if length > MAX_PAYLOAD:
            raise Fault(f"a payload of {length} bytes")
        return header[3], msgpack.unpackb(await self.reader.readexactly(length))

    async def expect(self, kind):
        got, fields = await self.receive()
        if got == kind:
            return fields
        if got == ERROR:
            raise Fault(f"{fields['code']} {fields['message']}")
        raise Fault(f"message {got:02x} in the place of {kind:02x}")

    async def handshake(self, key, relay_key):
        """The dialling side. `relay_key` is the key in the relay's certificate."""
        self.send(
            HELLO, node_id=key.node_id, name="another stack", skills=[], operator=None, wallet=None,
            public_key=key.public, protocol_v=1, timestamp=unix_s(),
        )
        ack = await self.expect(HELLO_ACK)
        if bytes(ack["public_key"]) != relay_key or ack["node_id"] != node_id(relay_key):
            raise Fault("the relay's HelloAck is not of its certificate: somebody may be in the middle")
        if ack["protocol_v"] != 1:
            raise Fault(f"protocol version {ack['protocol_v']}")
        challenge = bytes(ack["challenge"])
        self.send(VERIFY, signature=key.private.sign(challenge), challenge=challenge)
        verdict = await self.expect(VERIFY_ACK)
        if verdict["status"].lower() != "ok":
            raise Fault(f"the relay rejects the handshake: {verdict.get('reason')}")


@dataclass
class Terms:
    """A session's terms, from RelayReady."""

    session: bytes
    peer: str
    role: str
    bind_key: bytes
    bind_magic: bytes
    max_datagram: int
    consent_s: float
    keepalive_s: float
    data_addresses: list

    @classmethod
    def of(cls, ready, relay_key):
        terms = cls(
            bytes(ready["session"]), ready["peer_id"], ready["role"].lower(), bytes(ready["bind_key"]),
            bytes(ready["bind_magic"]), ready["max_datagram"], ready.get("consent_s") or 75,
            ready.get("keepalive_s") or 30, ready.get("data_addresses") or [],
        )
        if terms.bind_magic != bind_magic(relay_key):
            raise Fault("the terms have the bind magic of another relay")
        return terms


def bind_magic(relay_key):
    magic = bytearray(hashlib.sha256(b"atlas relay bind magic v1" + relay_key).digest()[:8])
    magic[0] &= 0x3F
    return bytes(magic)


class Binding:
    """One side's half of the bind exchange. It has no socket and no clock."""

    def __init__(self, terms, now):
        self.terms = terms
        self.counter = self.proved = 0
        self.cookie = NO_COOKIE
        self.paired = False
        self.reflexive = None
        self.retry = RETRY_S
        self.proved_at = self.sent_at = now
        self.asked_at = None  # the last Bind or Proof
        self.unanswered = self.bind_now = False
        self.unheard_since, self.patience = None, UNHEARD_S

    def lost_at(self):
        return self.proved_at + self.terms.consent_s

    def due(self, now):
        """When the next Bind is due."""
        if self.asked_at is None or self.bind_now:
            return now
        if self.unanswered or not self.paired:
            return self.asked_at + self.retry
        due = min(self.proved_at + self.terms.keepalive_s, max(self.sent_at, self.asked_at) + NAT_S)
        if self.unheard_since is not None:
            due = min(due, self.unheard_since + self.patience)
        return due

    def bind(self, now, clock_us):
        """The next Bind."""
        if self.unheard_since is not None and now >= self.unheard_since + self.patience:
            self.patience = min(2 * self.patience, self.terms.keepalive_s)
            self.unheard_since = None
        if self.unanswered and self.paired:
            self.retry = min(2 * self.retry, MAX_RETRY_S)
        self.counter = max(clock_us, self.counter + 1)
        self.asked_at, self.unanswered, self.bind_now = now, True, False
        return self.seal(BIND, self.counter, self.cookie)

    def take(self, datagram, now):
        """Takes a datagram with the magic from the relay. Returns what to send, and what has happened."""
        answer = self.open(datagram)
        if answer is None:
            return None, None
        kind, state, counter, cookie, reflexive = answer
        if counter > self.counter:
            return None, None
        if kind == CHALLENGE and counter > self.proved:
            self.asked_at = now
            return self.seal(PROOF, counter, cookie), None
        if kind != BOUND or counter < self.proved or (counter == self.proved and not (state and not self.paired)):
            return None, None
        if counter > self.proved:
            self.proved, self.proved_at, self.cookie = counter, now, cookie
            self.unanswered, self.retry, self.unheard_since = False, RETRY_S, None
        was_paired, self.paired = self.paired, bool(state)
        before, self.reflexive = self.reflexive, reflexive
        if self.paired and not was_paired:
            return None, "paired"
        if before not in (None, reflexive):
            return None, "moved"
        return None, None

    def sent(self, now):
        self.sent_at = now
        if self.unheard_since is None:
            self.unheard_since = now

    def heard(self):
        self.unheard_since, self.patience = None, UNHEARD_S

    def seal(self, kind, counter, cookie):
        head = bytes([1, kind, self.side(), 0])
        signed = self.terms.bind_magic + head + bytes(4) + self.terms.session
        signed += struct.pack(">Q", counter) + cookie + bytes(24)
        return signed + self.mac(signed)

    def open(self, datagram):
        """Kind, state, counter, cookie and reflexive address of a sound answer of this session."""
        signed, mac = datagram[:SIGNED_LEN], datagram[SIGNED_LEN:]
        if len(datagram) != BIND_LEN or not hmac.compare_digest(mac, self.mac(signed)):
            return None
        version, kind, side, state = signed[8:12]
        if (version, side, signed[12:16], signed[16:32]) != (1, self.side(), bytes(4), self.terms.session):
            return None
        (counter,) = struct.unpack(">Q", signed[32:40])
        address = ipaddress.IPv6Address(signed[56:72])
        (port,) = struct.unpack(">H", signed[72:74])
        return kind, state, counter, signed[40:56], f"{address.ipv4_mapped or address}:{port}"

    def side(self):
        return {"connector": 0, "target": 1}[self.terms.role]

    def mac(self, signed):
        return hmac.new(self.terms.bind_key, signed, hashlib.sha256).digest()[:16]


class Session(asyncio.DatagramProtocol):
    """A session's data socket, kept bound."""

    def __init__(self, terms, relay):
        self.terms, self.relay = terms, data_address(terms.data_addresses, relay)
        self.binding = Binding(terms, time.monotonic())
        self.changed = asyncio.Event()
        self.transport = None

    async def open(self):
        """Opens a data socket, in the place of the one before if there is one."""
        family = socket.AF_INET6 if ":" in self.relay[0] else socket.AF_INET
        here = "::" if family == socket.AF_INET6 else "0.0.0.0"
        before, loop = self.transport, asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(here, 0), family=family)
        if before is not None:
            before.close()
        self.binding.bind_now = True
        self.changed.set()

    def set_terms(self, terms, bind_now):
        """The relay has sent the terms again."""
        self.terms = self.binding.terms = terms
        self.binding.bind_now |= bind_now
        self.changed.set()

    async def keep_bound(self):
        """Binds whenever that is due; returns when consent is lost."""
        while (now := time.monotonic()) < self.binding.lost_at():
            if self.binding.due(now) <= now:
                self.transport.sendto(self.binding.bind(now, time.time_ns() // 1000), self.relay)
            wait = min(self.binding.due(now), self.binding.lost_at()) - now
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), max(wait, 0.001))
            except TimeoutError:
                pass

    def send(self, datagram):
        if len(datagram) > self.terms.max_datagram:
            raise Fault(f"{len(datagram)} bytes do not fit into {self.terms.max_datagram}")
        self.transport.sendto(datagram, self.relay)
        self.binding.sent(time.monotonic())
        self.changed.set()

    def datagram_received(self, data, addr):
        if addr[:2] != self.relay:
            return
        if len(data) != BIND_LEN or not data.startswith(self.terms.bind_magic):
            self.binding.heard()
            say("received", data.hex())
            return
        proof, event = self.binding.take(data, time.monotonic())
        if proof is not None:
            self.transport.sendto(proof, self.relay)
        if event == "paired":
            say("paired", self.terms.role, self.terms.max_datagram, self.binding.reflexive)
        if event == "moved":
            say("moved", self.binding.reflexive)
        self.changed.set()


def data_address(named, reached):
    """The first sound one of the addresses that the relay names, or the one that it was reached at."""
    at = ipaddress.ip_address(reached[0])
    for text in named:
        host, _, port = text.rpartition(":")
        address = ipaddress.ip_address(host.strip("[]"))
        nobody = address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255"
        if address.version != at.version or nobody or int(port) == 0:
            continue
        if address.is_global or (address.is_loopback, address.is_link_local) == (at.is_loopback, at.is_link_local):
            return str(address), int(port)
    return reached


class Agent:
    """An agent with one relay and one session."""

    def __init__(self, options):
        self.options = options
        self.key = Key(bytes.fromhex(options.seed))
        host, _, port = options.relay.rpartition(":")
        self.relay = host.strip("[]"), int(port)
        self.relay_key = None
        self.control = None
        self.session = None

    async def run(self):
        settings = QuicConfiguration(
            is_client=True, alpn_protocols=[ALPN], server_name=SERVER_NAME, idle_timeout=IDLE_S,
            verify_mode=ssl.CERT_NONE,  # names and dates say nothing; the key does, and is checked below
            supported_versions=[1], certificate=self.key.certificate(), private_key=self.key.private,
        )
        async with connect(*self.relay, configuration=settings, wait_connected=False) as quic:
            quic.transmit()
            await asyncio.wait_for(quic.wait_connected(), DIAL_S)
            # aioquic has no public name for it.
            self.relay_key = key_in(quic._quic.tls._peer_certificate)
            if node_id(self.relay_key) != self.options.relay_id:
                raise Fault(f"the relay is {node_id(self.relay_key)}, expected {self.options.relay_id}")
            self.control = Control(*await quic.create_stream())
            await asyncio.wait_for(self.control.handshake(self.key, self.relay_key), HANDSHAKE_S)
            if self.options.accept:
                allow = [self.options.accept]
                self.control.send(ANNOUNCE, node_id=self.key.node_id, timestamp=unix_s(), flow=1, allow=allow)
            else:
                target = self.options.connect
                self.control.send(
                    CONNECT, source_id=self.key.node_id, target_id=target, timestamp=unix_s(), flow=1
                )
            await self.until_over(quic)

    async def until_over(self, quic):
        """Runs until the first of these is over, and fails if it does."""
        tasks = [asyncio.create_task(each) for each in (self.listen(), self.obey(), keep_alive(quic))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()

    async def listen(self):
        """What the relay says, until it says that the session or the connection is over."""
        while True:
            try:
                kind, fields = await self.control.receive()
            except asyncio.IncompleteReadError:
                return say("closed")
            if kind == READY and fields["status"].lower() == "waiting":
                say("announced")
            elif kind == READY:
                await self.ready(fields)
            elif kind == PING:
                self.control.send(PONG, ts=unix_s(), echo=fields["ts"])
            elif kind == ERROR and fields.get("session"):
                say("limited", fields["packets"], fields["bytes"])
            elif kind in (ERROR, RELAY_ERROR):
                return say("refused", fields["code"], fields["message"])
            elif kind == DISCONNECT:
                return say("ended", fields["reason"])

    async def ready(self, fields):
        terms = Terms.of(fields, self.relay_key)
        if self.session is None:
            expected = self.options.accept or self.options.connect
            role = "target" if self.options.accept else "connector"
            if (terms.peer, terms.role) != (expected, role):
                return
            self.session = Session(terms, self.relay)
            await self.session.open()
            self.binding = asyncio.create_task(self.bind_until_lost(self.session))
        elif terms.session == self.session.terms.session:
            self.session.set_terms(terms, bool(fields.get("bind_now")))

    async def bind_until_lost(self, session):
        await session.keep_bound()
        self.leave("DISCONNECT_CONSENT_LOST")
        say("ended", "DISCONNECT_CONSENT_LOST")

    async def obey(self):
        """The orders on the standard input."""
        reader = asyncio.StreamReader(limit=1 << 20)
        protocol = asyncio.StreamReaderProtocol(reader)
        await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await reader.readline():
            order, _, rest = line.decode().strip().partition(" ")
            if order == "send":
                self.session.send(bytes.fromhex(rest))
            elif order == "rebind":
                await self.session.open()
            elif order == "leave":
                break
        self.leave("DISCONNECT_SHUTDOWN")
        self.control.send(DISCONNECT, reason="DISCONNECT_SHUTDOWN", note=None)
        await asyncio.Event().wait()  # the relay closes once it has read that

    def leave(self, reason):
        if self.session is not None:
            session = self.session.terms.session
            self.control.send(DISCONNECT, reason=reason, note=None, session=session)


async def keep_alive(quic):
    while True:
        await asyncio.sleep(KEEP_ALIVE_S)
        await quic.ping()


def main():
    parser = argparse.ArgumentParser(description="an agent on another QUIC stack")
    parser.add_argument("--relay", required=True, help="ADDRESS:PORT")
    parser.add_argument("--relay-id", required=True, help="the relay's node id")
    parser.add_argument("--seed", required=True, help="the agent's private key, 64 hex digits")
    role = parser.add_mutually_exclusive_group(required=True)
    role.add_argument("--accept", help="the node id of the peer that may connect")
    role.add_argument("--connect", help="the node id of the peer to connect to")
    try:
        asyncio.run(Agent(parser.parse_args()).run())
    except Fault as fault:
        sys.exit(f"agent: {fault}")


if __name__ == "__main__":
    main()
