//! Which addresses a call may be connected to. Judged after DNS, on the address that is dialled.
//!
//! A name rule never opens an address: an allowed name may resolve to `127.0.0.1`, by mistake or by
//! malice. Public addresses pass; private and special ones pass only where the matching rule names a
//! network that holds them; the last group never passes, also when named, because a tenant that reaches
//! it reads the machine's own credentials. What is particular to one machine is in [`super::machine`], and so is
//! the decision.
//!
//! | network | is | RFC |
//! |---|---|---|
//! | 0.0.0.0/8 | this network; Linux connects 0.0.0.0 to itself | 791 |
//! | 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 | private use | 1918 |
//! | 100.64.0.0/10 | shared by a carrier's customers | 6598 |
//! | 127.0.0.0/8, ::1 | loopback | 1122, 4291 |
//! | 192.0.0.0/24 | protocol assignments | 6890 |
//! | 192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32, 3fff::/20 | documentation | 5737, 3849, 9637 |
//! | 192.31.196.0/24, 192.175.48.0/24, 2620:4f:8000::/48 | AS112: answers for private names | 7534, 7535 |
//! | 192.52.193.0/24 | AMT relays | 7450 |
//! | 192.88.99.0/24 | 6to4 relays, deprecated | 7526 |
//! | 198.18.0.0/15, 2001:2::/48 (in 2001::/23) | benchmarking | 2544, 5180 |
//! | 224.0.0.0/4, ff00::/8 | multicast | 5771, 4291 |
//! | 240.0.0.0/4 | reserved; 255.255.255.255 is broadcast | 1112, 919 |
//! | :: | unspecified | 4291 |
//! | ::ffff:0:0/96 | IPv4-mapped: judged as the IPv4 address, which is what the kernel dials | 4291 |
//! | ::/96 | IPv4-compatible, deprecated | 4291 |
//! | 64:ff9b::/96, 64:ff9b:1::/48 | NAT64 | 6052, 8215 |
//! | 2001::/23 | protocol assignments; 2001::/32 is Teredo | 2928, 4380 |
//! | 2002::/16 | 6to4 | 3056 |
//! | fc00::/7 | unique local | 4193 |
//! | the rest outside 2000::/3 | not global unicast: discard (100::/64), segment routing, site-local, unassigned | 4291, 6666 |
//! | 169.254.0.0/16, fe80::/10 | link-local: **never** | 3927, 4291 |
//! | 168.63.129.16, 100.100.100.200, 192.0.0.192, fd00:ec2::/32, fd20:ce::254, fd00:c1::a9fe:a9fe | metadata services of clouds (169.254.169.254 and .170.2 are link-local): **never** | |
//!
//! So every network of the IANA special-purpose registries is special, be it globally reachable. An IPv6
//! address that carries an IPv4 one is special itself, and must pass twice: the rule names it, and the
//! address inside is public or named as well. If the one inside never passes, neither does the other.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Deref,
    str::FromStr,
};

use ipnet::IpNet;
use url::Host;

use super::error::Broken;

/// What the tables say of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Anyone may reach it.
    Public,
    /// Reached where a rule names it. Holds what it is, such as `loopback`.
    Special(&'static str),
    /// Never reached. Holds what it is.
    Never(&'static str),
    /// Where this host listens: never reached. Not of the tables, see [`Machine`](super::Machine).
    OwnListener,
}

const fn v4(a: u8, b: u8, c: u8, d: u8) -> Ipv4Addr {
    Ipv4Addr::new(a, b, c, d)
}

const METADATA: &str = "metadata service";
const LINK_LOCAL: &str = "link-local";

/// Network, prefix length, class. The first row that holds an address decides.
const V4: &[(Ipv4Addr, u32, Class)] = &[
    (v4(168, 63, 129, 16), 32, Class::Never(METADATA)),
    (v4(100, 100, 100, 200), 32, Class::Never(METADATA)),
    (v4(192, 0, 0, 192), 32, Class::Never(METADATA)),
    (v4(169, 254, 0, 0), 16, Class::Never(LINK_LOCAL)),
    (v4(0, 0, 0, 0), 8, Class::Special("this network")),
    (v4(10, 0, 0, 0), 8, Class::Special("private use")),
    (v4(100, 64, 0, 0), 10, Class::Special("carrier-shared")),
    (v4(127, 0, 0, 0), 8, Class::Special("loopback")),
    (v4(172, 16, 0, 0), 12, Class::Special("private use")),
    (v4(192, 0, 0, 0), 24, Class::Special("protocol assignments")),
    (v4(192, 0, 2, 0), 24, Class::Special("documentation")),
    (v4(192, 31, 196, 0), 24, Class::Special("AS112")),
    (v4(192, 52, 193, 0), 24, Class::Special("AMT relay")),
    (v4(192, 175, 48, 0), 24, Class::Special("AS112")),
    (v4(192, 88, 99, 0), 24, Class::Special("6to4 relay")),
    (v4(192, 168, 0, 0), 16, Class::Special("private use")),
    (v4(198, 18, 0, 0), 15, Class::Special("benchmarking")),
    (v4(198, 51, 100, 0), 24, Class::Special("documentation")),
    (v4(203, 0, 113, 0), 24, Class::Special("documentation")),
    (v4(224, 0, 0, 0), 4, Class::Special("multicast")),
    (v4(240, 0, 0, 0), 4, Class::Special("reserved")),
];

const fn v6(a: u16, b: u16, c: u16, g: u16, h: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, 0, 0, 0, g, h)
}

/// As [`V4`].
const V6: &[(Ipv6Addr, u32, Class)] = &[
    (v6(0xfd00, 0x0ec2, 0, 0, 0), 32, Class::Never(METADATA)),
    (v6(0xfd20, 0x00ce, 0, 0, 0x0254), 128, Class::Never(METADATA)),
    (v6(0xfd00, 0x00c1, 0, 0xa9fe, 0xa9fe), 128, Class::Never(METADATA)),
    (v6(0xfe80, 0, 0, 0, 0), 10, Class::Never(LINK_LOCAL)),
    (v6(0, 0, 0, 0, 0), 128, Class::Special("unspecified")),
    (v6(0, 0, 0, 0, 1), 128, Class::Special("loopback")),
    (v6(0, 0, 0, 0, 0), 96, Class::Special("IPv4-compatible")),
    (v6(0x64, 0xff9b, 0, 0, 0), 96, Class::Special("NAT64")),
    (v6(0x64, 0xff9b, 1, 0, 0), 48, Class::Special("NAT64")),
    (v6(0x2001, 0, 0, 0, 0), 32, Class::Special("Teredo")),
    (v6(0x2001, 0, 0, 0, 0), 23, Class::Special("protocol assignments")),
    (v6(0x2001, 0x0db8, 0, 0, 0), 32, Class::Special("documentation")),
    (v6(0x2002, 0, 0, 0, 0), 16, Class::Special("6to4")),
    (v6(0x3fff, 0, 0, 0, 0), 20, Class::Special("documentation")),
    (v6(0xfc00, 0, 0, 0, 0), 7, Class::Special("unique local")),
    (v6(0xff00, 0, 0, 0, 0), 8, Class::Special("multicast")),
    (v6(0x2620, 0x004f, 0x8000, 0, 0), 48, Class::Special("AS112")),
    (v6(0x2000, 0, 0, 0, 0), 3, Class::Public),
    (v6(0, 0, 0, 0, 0), 0, Class::Special("not global unicast")),
];

/// What the tables say of an address, also of one written as another.
pub fn classify(address: IpAddr) -> Class {
    let address = address.to_canonical();
    // What is inside counts too, where it never passes.
    for inside in carried(address).into_iter().flatten() {
        if let Class::Never(what) = classify_v4(inside) {
            return Class::Never(what);
        }
    }
    match address {
        IpAddr::V4(address) => classify_v4(address),
        IpAddr::V6(address) => {
            let row = V6
                .iter()
                .find(|(network, length, _)| (address.to_bits() ^ network.to_bits()).leading_zeros() >= *length);
            row.map_or(Class::Special("not global unicast"), |(_, _, class)| *class)
        }
    }
}

/// The IPv4 address to which packets for an IPv6 address would go.
pub(super) fn inside(address: IpAddr) -> Option<IpAddr> {
    carried(address)[0].map(IpAddr::V4)
}

fn classify_v4(address: Ipv4Addr) -> Class {
    let row = V4.iter().find(|(network, length, _)| (address.to_bits() ^ network.to_bits()).leading_zeros() >= *length);
    row.map_or(Class::Public, |(_, _, class)| *class)
}

/// The IPv4 addresses that an IPv6 address carries: first where packets would go, then any other.
fn carried(address: IpAddr) -> [Option<Ipv4Addr>; 2] {
    let IpAddr::V6(address) = address else { return [None, None] };
    let join = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => [None, None],
        [0, 0, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => [join(high, low), None],
        // A local NAT64 prefix has 96 bits or 48; with 48 the address is parted by a byte that is 0.
        [0x64, 0xff9b, 1, first, second, third, high, low] => {
            [join(high, low), join(first, (second & 0xff) << 8 | third >> 8)]
        }
        [0x2002, high, low, ..] => [join(high, low), None],
        // Teredo: the client, written inverted, and the server.
        [0x2001, 0, server_high, server_low, _, _, high, low] => [join(!high, !low), join(server_high, server_low)],
        _ => [None, None],
    }
}

/// The addresses of a host, where it needs no resolver to know them: at most two.
pub(super) struct KnownAddresses {
    addresses: [IpAddr; 2],
    count: usize,
}

impl Deref for KnownAddresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        &self.addresses[..self.count]
    }
}

/// The addresses of a host that needs no resolving, in their canonical form.
pub(super) fn known(host: Option<Host<&str>>) -> KnownAddresses {
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let one = |address: IpAddr| KnownAddresses { addresses: [address, address], count: 1 };
    match host {
        Some(Host::Ipv4(address)) => one(address.into()),
        Some(Host::Ipv6(address)) => one(IpAddr::from(address).to_canonical()),
        // Every name below `localhost` is loopback by definition (RFC 6761).
        Some(Host::Domain(name)) if name == "localhost" || name.ends_with(".localhost") => {
            KnownAddresses { addresses: loopback, count: 2 }
        }
        _ => KnownAddresses { addresses: loopback, count: 0 },
    }
}

/// A network as a rule names it.
///
/// # Errors
/// The rule that the text breaks, with an example.
pub(super) fn parse_network(text: &str) -> Result<IpNet, Broken> {
    let example = "\"127.0.0.0/8\"";
    let Ok(network) = IpNet::from_str(text) else {
        return Err(match IpAddr::from_str(text) {
            Ok(address) => {
                Broken::new("a network has a prefix length").write(format_args!("\"{}\"", IpNet::from(address)))
            }
            Err(_) => Broken::new("not a network").write(example),
        });
    };
    if network.addr().to_canonical() != network.addr() {
        return Err(Broken::new("IPv4-mapped addresses are judged as IPv4; write the IPv4 network").write(example));
    }
    if network.to_string() != text {
        return Err(Broken::new("a network has one spelling").write(format_args!("\"{}\"", network.trunc())));
    }
    if network.trunc() != network {
        let rule = "bits are set behind the prefix";
        return Err(Broken::new(rule).write(format_args!(
            "\"{}\" or \"{}\"",
            network.trunc(),
            IpNet::from(network.addr())
        )));
    }
    // A network may hold such addresses; naming nothing else can only be meant to reach them.
    if matches!((classify(network.network()), classify(network.broadcast())), (Class::Never(_), Class::Never(_))) {
        return Err(Broken::new("link-local and metadata addresses are refused, also when named").help("leave it out"));
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::{super::Machine, *};

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn allowed(named: &[&str], text: &str) -> bool {
        let named: Vec<IpNet> = named.iter().map(|network| network.parse().expect(network)).collect();
        Machine::default().check(named.iter(), SocketAddr::new(address(text), 80)).is_ok()
    }

    /// Everything there is, in both families.
    const ALL: &[&str] = &["0.0.0.0/0", "::/0"];

    #[test]
    fn the_edges_of_each_network_are_where_the_registries_draw_them() {
        // The last public address before, the first and last special one, the first public one after.
        for (before, first, last, after) in [
            ("9.255.255.255", "10.0.0.0", "10.255.255.255", "11.0.0.0"),
            ("100.63.255.255", "100.64.0.0", "100.127.255.255", "100.128.0.0"),
            ("126.255.255.255", "127.0.0.0", "127.255.255.255", "128.0.0.0"),
            ("169.253.255.255", "169.254.0.0", "169.254.255.255", "169.255.0.0"),
            ("172.15.255.255", "172.16.0.0", "172.31.255.255", "172.32.0.0"),
            ("191.255.255.255", "192.0.0.0", "192.0.0.255", "192.0.1.0"),
            ("192.0.1.255", "192.0.2.0", "192.0.2.255", "192.0.3.0"),
            ("192.31.195.255", "192.31.196.0", "192.31.196.255", "192.31.197.0"),
            ("192.52.192.255", "192.52.193.0", "192.52.193.255", "192.52.194.0"),
            ("192.175.47.255", "192.175.48.0", "192.175.48.255", "192.175.49.0"),
            (
                "2620:4f:7fff:ffff:ffff:ffff:ffff:ffff",
                "2620:4f:8000::",
                "2620:4f:8000:ffff:ffff:ffff:ffff:ffff",
                "2620:4f:8001::",
            ),
            ("192.88.98.255", "192.88.99.0", "192.88.99.255", "192.88.100.0"),
            ("192.167.255.255", "192.168.0.0", "192.168.255.255", "192.169.0.0"),
            ("198.17.255.255", "198.18.0.0", "198.19.255.255", "198.20.0.0"),
            ("198.51.99.255", "198.51.100.0", "198.51.100.255", "198.51.101.0"),
            ("203.0.112.255", "203.0.113.0", "203.0.113.255", "203.0.114.0"),
            ("168.63.129.15", "168.63.129.16", "168.63.129.16", "168.63.129.17"),
            ("2001:200::", "2001:db8::", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", "2001:db9::"),
            ("2003::", "2002::", "2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "2003::"),
            (
                "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "3fff::",
                "3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff",
                "3fff:1000::",
            ),
            ("2000::", "2001::", "2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff", "2001:200::"),
            ("2000::", "1fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "4000::", "3ffe:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert!(allowed(&[], before), "{before}");
            assert!(!allowed(&[], first), "{first}");
            assert!(!allowed(&[], last), "{last}");
            assert!(allowed(&[], after), "{after}");
        }
    }

    #[test]
    fn public_addresses_pass() {
        for text in ["1.1.1.1", "8.8.8.8", "223.255.255.255", "2606:4700::1111", "2a00::", "::ffff:8.8.8.8"] {
            assert!(allowed(&[], text), "{text}");
        }
    }

    #[test]
    fn special_addresses_pass_only_where_they_are_named() {
        for (text, network) in [
            ("0.0.0.0", "0.0.0.0/32"),
            ("10.0.0.1", "10.0.0.0/8"),
            ("127.0.0.1", "127.0.0.1/32"),
            ("100.64.0.1", "100.64.0.0/10"),
            ("224.0.0.1", "224.0.0.0/4"),
            ("255.255.255.255", "240.0.0.0/4"),
            ("::", "::/128"),
            ("::1", "::1/128"),
            ("fc00::1", "fc00::/7"),
            ("fd12::1", "fd12::/16"),
            ("ff02::2", "ff00::/8"),
            ("fec0::1", "fec0::/10"),
            ("100::1", "100::/64"),
            ("5f00::1", "5f00::/16"),
            ("2001:db8::1", "2001:db8::/32"),
        ] {
            assert!(!allowed(&[], text), "{text}");
            assert!(!allowed(&["203.0.113.0/24", "fdff::/16"], text), "{text}");
            assert!(allowed(&[network], text), "{text} in {network}");
        }
        assert!(!allowed(&["127.0.0.0/8"], "0.0.0.0"));
        assert!(!allowed(&["127.0.0.0/8"], "::1"));
        assert!(!allowed(&["10.0.0.0/9"], "10.128.0.0"));
    }

    #[test]
    fn link_local_and_metadata_never_pass() {
        for text in [
            "169.254.169.254",
            "169.254.170.2",
            "169.254.0.1",
            "168.63.129.16",
            "100.100.100.200",
            "192.0.0.192",
            "fd00:ec2::254",
            "fd00:ec2::23",
            "fe80::1",
            "febf::1",
            "fd20:ce::254",
            "fd00:c1::a9fe:a9fe",
            "::ffff:169.254.169.254",
            "::a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::a9fe:a9fe",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2002:a9fe:a9fe::1",
            "2001:0:a9fe:a9fe::1",
            "2001::5601:5601",
        ] {
            assert!(matches!(classify(address(text)), Class::Never(_)), "{text}");
            assert!(!allowed(ALL, text), "{text}");
        }
    }

    #[test]
    fn mapped_spellings_are_judged_as_the_ipv4_address() {
        assert!(!allowed(&[], "::ffff:127.0.0.1"));
        assert!(!allowed(&["::/0"], "::ffff:127.0.0.1"));
        assert!(allowed(&["127.0.0.0/8"], "::ffff:127.0.0.1"));
        assert!(allowed(&["127.0.0.0/8"], "::ffff:7f00:1"));
    }

    #[test]
    fn an_address_inside_another_must_pass_as_well() {
        for text in [
            "::127.0.0.1",
            "64:ff9b::a00:1",
            "64:ff9b:1::7f00:1",
            "2002:7f00:1::",
            "2001:0:4136:e378:8000:63bf:80ff:fffe",
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        ] {
            assert!(!allowed(&[], text), "{text}");
            assert!(!allowed(&["0.0.0.0/0"], text), "{text}: only the inner one is named");
            assert!(!allowed(&["::/0"], text), "{text}: only the outer one is named");
            assert!(allowed(ALL, text), "{text}");
        }
        // A public address inside needs no name of its own; the outer form still does.
        for text in ["64:ff9b::808:808", "2002:808:808::1", "2001:0:4136:e378:8000:63bf:f7f7:f7f7"] {
            assert!(!allowed(&[], text), "{text}");
            assert!(allowed(&["::/0"], text), "{text}");
        }
    }

    #[test]
    fn networks_have_one_spelling() {
        for text in ["127.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "::/0", "::1/128", "fc00::/7", "192.168.0.0/16"] {
            assert!(parse_network(text).is_ok(), "{text}");
        }
        for text in [
            "",
            "*",
            "127.0.0.1",
            "::1",
            "127.0.0.1/8",
            "127.0.0.0/33",
            "127.0.0.0/-1",
            "127.0.0.0/08",
            "127.0.0.0 /8",
            " 127.0.0.0/8",
            "127/8",
            "0x7f.0.0.0/8",
            "::ffff:127.0.0.0/104",
            "0:0::1/128",
            "FC00::/7",
            "localhost",
            "127.0.0.0/255.0.0.0",
            "169.254.0.0/16",
            "169.254.169.254/32",
            "fe80::/10",
            "fe80::/64",
            "100.100.100.200/32",
            "fd00:ec2::254/128",
            "10.0.0.0/33",
            "10.0.0.0/",
        ] {
            assert!(parse_network(text).is_err(), "{text:?}");
        }
    }
}
