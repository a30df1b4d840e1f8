#!/bin/sh
# For firewalld, as root. Why the port is not tracked, and where it has to be: see nftables.conf.
set -e

firewall-cmd --permanent --add-port=4433/udp
for family in ipv4 ipv6; do
    firewall-cmd --permanent --direct --add-rule $family raw PREROUTING 0 -p udp --dport 4433 -m addrtype --dst-type LOCAL -j CT --notrack
    firewall-cmd --permanent --direct --add-rule $family raw OUTPUT 0 -p udp --sport 4433 -j CT --notrack
done
firewall-cmd --reload
