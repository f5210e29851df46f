//! Permits for `std:net`: for opening a connection or a socket, and for using one.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use neoc_abi::{
    OperationError,
    net::{Kind, MAX_BYTES, MAX_DATAGRAM_BYTES, Operation, Want},
};

use super::{
    Basis, Broker, Caller, Connection, Decided, Refused, Traffic,
    egress::Destination,
    http::{CONNECT_TIMEOUT, MAX_TIMEOUT},
    subject::Subject,
};
use crate::policy::{
    Tenant,
    module::Asked,
    net::{self as policy, Scheme, Target},
};

/// Leave for one operation.
pub enum Permit {
    /// Open what the handle of later operations stands for.
    Open(Box<Open>),
    /// Use a handle that was given to the same VM. Where it leads was decided when it was opened.
    Use(Use),
}

/// Leave to open a connection, or a socket for one peer.
pub struct Open {
    caller: Arc<Caller>,
    rules: policy::NetMatch,
    target: Target,
    within: Duration,
    connection: Connection,
}

/// What to do with a handle.
pub struct Use {
    caller: Arc<Caller>,
    /// The handle. It may be none of the VM's.
    pub handle: u32,
    /// What to do.
    pub action: Action,
    /// How long it may take. Absent: as long as the request lasts.
    pub timeout: Option<Duration>,
}

/// What to do with a handle, with checked arguments.
pub enum Action {
    /// Read from a connection.
    Read(Want),
    /// Write to a connection.
    Write(Vec<u8>),
    /// End the writing.
    Shutdown,
    /// Send a datagram.
    Send(Vec<u8>),
    /// Receive a datagram.
    Receive,
    /// Close either.
    Close,
}

// === impl Open ===

impl Open {
    /// Where to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Where it connects.
    pub fn destination(&self) -> Destination {
        Destination::of_target(&self.caller, &self.target, &self.rules)
    }

    /// How long that may take.
    pub fn within(&self) -> Duration {
        self.within
    }

    /// The slot among the tenant's connections, to be held as long as this one is open.
    pub fn into_connection(self) -> Connection {
        self.connection
    }
}

// === impl Use ===

impl Use {
    /// Where the bytes that it receives are counted.
    pub fn traffic(&self) -> &Traffic {
        &self.caller.counts.traffic
    }
}

/// Decides: for a new connection the target's form, the rules, the counts of outbound requests and connections;
/// for one that is open the arguments and the bytes to send.
pub(super) fn authorize(caller: &Arc<Caller>, operation: Operation) -> Decided<Permit> {
    let (handle, action, timeout_ms) = match operation {
        Operation::Open { kind, target, timeout_ms } => {
            let (open, basis) = open(caller, kind, &target, timeout_ms)?;
            return Ok((Permit::Open(Box::new(open)), basis));
        }
        Operation::Read { handle, want, timeout_ms } => (handle, Action::Read(checked_want(want)?), timeout_ms),
        Operation::Write { handle, bytes, timeout_ms } => {
            send(caller, bytes.len(), MAX_BYTES)?;
            (handle, Action::Write(bytes), timeout_ms)
        }
        Operation::Shutdown { handle } => (handle, Action::Shutdown, None),
        Operation::Send { handle, bytes } => {
            send(caller, bytes.len(), MAX_DATAGRAM_BYTES)?;
            (handle, Action::Send(bytes), None)
        }
        Operation::Receive { handle, timeout_ms } => (handle, Action::Receive, timeout_ms),
        Operation::Close { handle } => (handle, Action::Close, None),
    };
    let timeout = timeout_ms.map(|ms| Duration::from_millis(ms).min(MAX_TIMEOUT));
    Ok((Permit::Use(Use { caller: Arc::clone(caller), handle, action, timeout }), Basis::default()))
}

fn open(caller: &Arc<Caller>, kind: Kind, target: &str, timeout_ms: Option<u64>) -> Decided<Open> {
    let target = Target::parse(target).map_err(|error| caller.refuse_target("net", error))?;
    let fits = match kind {
        Kind::Connection => target.scheme != Scheme::Udp,
        Kind::Socket => target.scheme == Scheme::Udp,
    };
    if !fits {
        let message = "net.connect takes tcp:// and tls://, and net.udp takes udp://";
        return Err(Refused::Invalid(OperationError::invalid(message)));
    }
    let Tenant { allow, deny, .. } = &*caller.principal.tenant;
    let (rules, decided) = match policy::decide(&allow.net, &deny.net, &caller.principal.machine, &target) {
        Ok(matched) => {
            let place = policy::place(&allow.net, &caller.principal.machine, &matched, &target, &[]);
            (matched, Ok(place))
        }
        Err(refusal) => (policy::NetMatch::none(), Err(refusal)),
    };
    let basis = caller.basis_of(decided, Asked::Net(&target))?;
    let connection = caller.principal.account.connections().try_take().map_err(Refused::OverLimit)?;
    caller.counts.take_subrequest(0).map_err(Refused::OverLimit)?;
    let within = timeout_ms.map_or(CONNECT_TIMEOUT, |ms| Duration::from_millis(ms).min(MAX_TIMEOUT));
    Ok((Open { caller: Arc::clone(caller), rules, target, within, connection }, basis))
}

/// The guest checks the same; a guest that was taken over does not.
fn checked_want(want: Want) -> Result<Want, Refused> {
    match want {
        Want::Exactly(n) | Want::Line(n) if n == 0 || usize::try_from(n).is_ok_and(|n| n > MAX_BYTES) => {
            Err(Refused::Invalid(OperationError::invalid(format!("net: 1 to {MAX_BYTES} bytes can be read at once"))))
        }
        want => Ok(want),
    }
}

fn send(caller: &Caller, bytes: usize, most: usize) -> Result<(), Refused> {
    if bytes > most {
        return Err(Refused::Invalid(OperationError::invalid(format!("net: at most {most} bytes, got {bytes}"))));
    }
    caller.counts.traffic.send(bytes).map_err(Refused::OverLimit)
}

impl Broker {
    /// Records that a connection could not be opened, because [`Destination::permit`] refused its address.
    /// Gives what the script gets.
    pub fn refuse_peer(&self, open: &Open, address: IpAddr) -> OperationError {
        let decided = judge_address(open, address);
        let target = &open.target;
        match self.audit(&open.caller, &Subject::connection(target, Some(address)), decided) {
            Err(error) => error,
            // Only when the policy were to contradict itself; then nothing was opened either.
            Ok(()) => OperationError::io(format!("net: {target}: the connection failed")),
        }
    }

    /// Records the address that a connection was opened to. It was permitted before it was dialled.
    pub fn record_peer(&self, open: &Open, address: IpAddr) {
        let subject = Subject::connection(&open.target, Some(address));
        let _ = self.audit(&open.caller, &subject, judge_address(open, address));
    }
}

fn judge_address(open: &Open, address: IpAddr) -> Decided<()> {
    let Open { caller, rules, target, .. } = open;
    let allow = &caller.principal.tenant.allow.net;
    let machine = &caller.principal.machine;
    let decided = if policy::allows_address(allow, machine, rules, SocketAddr::new(address, target.port)) {
        Ok(policy::place(allow, machine, rules, target, &[address]))
    } else {
        Err(policy::refuse_address(allow, machine, rules, target, address))
    };
    Ok(((), caller.basis(decided)?))
}
