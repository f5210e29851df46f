//! The machine that the host runs on, as an outbound call could reach it, and the decision on an address.
//!
//! The tables of [`address`] say what an address is to everyone. Two things only the machine knows:
//!
//! - Where this host listens itself. No rule lets a tenant call it: the call would come back as one of another
//!   tenant, past whatever stands in front of the host.
//! - Which public addresses are its own. They pass like special ones, where a rule names them: what listens
//!   there may take a caller from this machine for a trusted one.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use super::{
    address::{Class, classify, inside},
    refusal::Reason,
};

/// What a public address of the machine's own is called.
const OWN: &str = "of this machine";

/// What of the network is this machine. By default nothing is known of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Of its interfaces: canonical, sorted.
    addresses: Vec<IpAddr>,
    /// Where this host listens.
    listener: Option<SocketAddr>,
}

/// Why an address is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRefusal {
    /// The address in its canonical form. For the operator; a script must not learn it.
    pub address: IpAddr,
    /// Anything but [`Class::Public`].
    pub class: Class,
}

// === impl Machine ===

impl Machine {
    /// A machine with these addresses, on which this host listens at `listener`: nowhere yet, if its port is 0.
    pub fn new(addresses: impl IntoIterator<Item = IpAddr>, listener: Option<SocketAddr>) -> Self {
        let mut addresses: Vec<_> = addresses.into_iter().map(|address| address.to_canonical()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        Self { addresses, listener: listener.filter(|listener| listener.port() != 0) }
    }

    /// The same machine, when its interfaces have these addresses.
    pub fn with_addresses(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::new(addresses, self.listener)
    }

    /// Decides on an address, given the networks that the matching rules name. Allocates nothing.
    ///
    /// # Errors
    /// [`AddressRefusal`] for an address that is neither public nor named, and for those that never pass.
    pub fn check<'a>(
        &self,
        named: impl Iterator<Item = &'a IpNet> + Clone,
        to: SocketAddr,
    ) -> Result<(), AddressRefusal> {
        let address = to.ip().to_canonical();
        let class = self.classify(to);
        let is_named = |address: IpAddr| named.clone().any(|network| network.contains(&address));
        let passes = match class {
            Class::Public => true,
            Class::Never(_) | Class::OwnListener => false,
            Class::Special(_) => {
                is_named(address) && inside(address).is_none_or(|inside| self.is_public(inside) || is_named(inside))
            }
        };
        if passes { Ok(()) } else { Err(AddressRefusal { address, class }) }
    }

    /// What an address is, on one port.
    pub fn classify(&self, to: SocketAddr) -> Class {
        let address = to.ip().to_canonical();
        let mut written = [Some(address), inside(address)].into_iter().flatten();
        match classify(address) {
            class @ Class::Never(_) => class,
            _ if written.any(|address| self.listens_at(address, to.port())) => Class::OwnListener,
            Class::Public if self.has(address) => Class::Special(OWN),
            class => class,
        }
    }

    /// Whether a rule could let an address pass.
    pub fn is_open_to_rules(&self, to: SocketAddr) -> bool {
        matches!(self.classify(to), Class::Public | Class::Special(_))
    }

    /// Why an address is refused, and what it is.
    pub(super) fn reason(&self, to: SocketAddr) -> (Reason, &'static str) {
        match self.classify(to) {
            Class::Never(what) => (Reason::AddressNeverAllowed, what),
            Class::OwnListener => (Reason::OwnListener, "where this host listens"),
            Class::Special(what) => (Reason::AddressNotAllowed, what),
            // Only without any rule: then nothing passes.
            Class::Public => (Reason::AddressNotAllowed, "public"),
        }
    }

    /// The networks that a rule names to let an address pass: none for a public one, else itself, and a
    /// special one that it carries.
    pub(super) fn networks(&self, address: IpAddr) -> Vec<String> {
        let address = address.to_canonical();
        let both = [Some(address), inside(address)].into_iter().flatten();
        both.filter(|address| !self.is_public(*address)).map(|address| IpNet::from(address).to_string()).collect()
    }

    fn is_public(&self, address: IpAddr) -> bool {
        classify(address) == Class::Public && !self.has(address)
    }

    fn has(&self, address: IpAddr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    fn listens_at(&self, address: IpAddr, port: u16) -> bool {
        let Some(listener) = self.listener.filter(|listener| listener.port() == port) else { return false };
        let at = listener.ip().to_canonical();
        // Linux connects to 0.0.0.0 and :: as to itself; and who listens there listens on all it has, in both families.
        address == at
            || address.is_unspecified()
            || (at.is_unspecified() && (address.is_loopback() || self.has(address)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything there is, in both families.
    const ALL: &[&str] = &["0.0.0.0/0", "::/0"];

    /// Two public addresses, a private one, and what every machine has.
    const ADDRESSES: &[&str] = &["127.0.0.1", "::1", "8.8.4.4", "10.0.0.9", "2606:4700::9", "::ffff:9.9.9.9"];

    fn machine(listener: &str) -> Machine {
        let addresses = ADDRESSES.iter().map(|text| text.parse().expect(text));
        Machine::new(addresses, Some(listener.parse().expect(listener)))
    }

    fn outcome(machine: &Machine, named: &[&str], to: &str) -> Result<(), Class> {
        let named: Vec<IpNet> = named.iter().map(|network| network.parse().expect(network)).collect();
        machine.check(named.iter(), to.parse().expect(to)).map_err(|refusal| refusal.class)
    }

    #[test]
    fn nothing_lets_a_call_pass_to_where_the_host_listens() {
        for (listener, own, others) in [
            (
                "127.0.0.1:80",
                &["127.0.0.1:80", "[::ffff:127.0.0.1]:80", "0.0.0.0:80", "[::]:80", "[64:ff9b::7f00:1]:80"][..],
                &["127.0.0.1:81", "127.0.0.2:80", "[::1]:80", "10.0.0.9:80", "8.8.4.4:80"][..],
            ),
            ("[::1]:80", &["[::1]:80", "[::]:80", "0.0.0.0:80"], &["127.0.0.1:80", "[::1]:81"]),
            ("[::ffff:127.0.0.1]:80", &["127.0.0.1:80"], &["127.0.0.2:80"]),
            ("8.8.4.4:80", &["8.8.4.4:80", "[2002:808:404::1]:80"], &["127.0.0.1:80", "9.9.9.9:80", "8.8.8.8:80"]),
            (
                "0.0.0.0:80",
                &["127.0.0.1:80", "127.9.9.9:80", "[::1]:80", "10.0.0.9:80", "8.8.4.4:80", "9.9.9.9:80", "0.0.0.0:80"],
                &["127.0.0.1:81", "10.0.0.8:80", "8.8.8.8:80"],
            ),
            ("[::]:80", &["127.0.0.1:80", "[::1]:80", "[2606:4700::9]:80", "8.8.4.4:80"], &["[2606:4700::8]:80"]),
        ] {
            let machine = machine(listener);
            for to in own {
                assert_eq!(outcome(&machine, ALL, to), Err(Class::OwnListener), "{listener}: {to}");
                assert!(!machine.is_open_to_rules(to.parse().expect(to)));
            }
            for to in others {
                assert_eq!(outcome(&machine, ALL, to), Ok(()), "{listener}: {to}");
            }
        }
    }

    #[test]
    fn a_public_address_of_the_machine_passes_where_it_is_named() {
        let machine = machine("127.0.0.1:80");
        for (to, network) in
            [("8.8.4.4:1", "8.8.4.4/32"), ("9.9.9.9:1", "9.9.9.0/24"), ("[2606:4700::9]:1", "2606:4700::9/128")]
        {
            assert_eq!(outcome(&machine, &[], to), Err(Class::Special(OWN)), "{to}");
            assert_eq!(outcome(&machine, &["127.0.0.0/8"], to), Err(Class::Special(OWN)), "{to}");
            assert_eq!(outcome(&machine, &[network], to), Ok(()), "{to}");
            assert_eq!(outcome(&Machine::default(), &[], to), Ok(()), "{to} of another machine");
        }
        // Its own address within one that must be named.
        assert_eq!(outcome(&machine, &["::/0"], "[64:ff9b::808:404]:1"), Err(Class::Special("NAT64")));
        assert_eq!(outcome(&machine, ALL, "[64:ff9b::808:404]:1"), Ok(()));
        assert_eq!(outcome(&machine, &[], "8.8.8.8:1"), Ok(()));
        assert_eq!(machine.networks("8.8.4.4".parse().expect("an address")), ["8.8.4.4/32"]);
        assert_eq!(machine.networks("8.8.8.8".parse().expect("an address")), Vec::<String>::new());
    }

    #[test]
    fn what_never_passes_is_called_so_on_any_port() {
        let never = machine("0.0.0.0:80").with_addresses(["169.254.0.1".parse().expect("an address")]);
        assert_eq!(outcome(&never, ALL, "169.254.0.1:80"), Err(Class::Never("link-local")));
    }
}
