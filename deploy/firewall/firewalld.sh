#!/bin/sh
# For firewalld, as root, beside nftables.conf, which says why the port is not tracked, and where it has to be. Run again, it
# changes nothing but what was not made permanent, which a reload of firewalld drops.
#
# It opens the port in the default zone: if the interface is in another one, give --add-port its --zone. The table of
# nftables.conf stands beside firewalld's, which leaves it alone, and is loaded whenever firewalld starts: nftables.service
# cannot run with firewalld. firewalld's own rules for it, --direct, are deprecated, and where iptables is not installed they
# are taken and do nothing.
set -e

install -m 0644 "$(dirname "$0")/nftables.conf" /etc/atlas-relay.nft
nft -f /etc/atlas-relay.nft
mkdir -p /etc/systemd/system/firewalld.service.d
cat > /etc/systemd/system/firewalld.service.d/atlas-relay.conf <<'END'
[Service]
# The minus: a host without this table is better off than one without a firewall.
ExecStartPost=-/usr/sbin/nft -f /etc/atlas-relay.nft
END
systemctl daemon-reload
firewall-cmd --permanent --add-port=4433/udp
firewall-cmd --reload
