//! Programs as data: what they can consist of, how they are made, and what they look like in Luau.

use std::fmt::Write;

use proptest::bool::weighted;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

/// A random program.
#[derive(Debug, Clone)]
pub struct Program {
    /// The capacity of each channel.
    pub capacities: Vec<u32>,
    /// The permits of each semaphore.
    pub permits: Vec<u32>,
    /// Whether it begins with as many tasks as there can be.
    floods: bool,
    /// Whether the handler goes on after a statement that fails.
    goes_on: bool,
    body: Vec<Statement>,
}

/// A statement. Tasks, channels and semaphores are numbers: the program takes them modulo how many there are.
#[derive(Debug, Clone)]
enum Statement {
    Start {
        how: &'static str,
        seconds: f64,
        body: Vec<Statement>,
    },
    Await {
        how: &'static str,
        tasks: Vec<u8>,
        timeout: Option<f64>,
    },
    Cancel {
        task: u8,
    },
    CancelSelf,
    Finally {
        body: Vec<Statement>,
    },
    Wait {
        seconds: f64,
    },
    Yield,
    BeStubborn,
    Put {
        channel: u8,
        timeout: Option<f64>,
    },
    Get {
        channel: u8,
        timeout: Option<f64>,
    },
    Iterate {
        channel: u8,
    },
    Close {
        channel: u8,
    },
    Acquire {
        semaphore: u8,
        timeout: Option<f64>,
    },
    Release {
        semaphore: u8,
    },
    With {
        semaphore: u8,
        body: Vec<Statement>,
    },
    Fetch {
        n: u8,
    },
    Set {
        key: u8,
        value: u8,
    },
    Look {
        task: u8,
    },
    Fail,
    /// A statement that has no body, its error swallowed.
    Try(Box<Statement>),
    Inside {
        place: &'static str,
        body: Vec<Statement>,
    },
    Drive {
        how: &'static str,
        times: u8,
        body: Vec<Statement>,
    },
    Nest {
        depth: u8,
        body: Vec<Statement>,
    },
}

/// How deeply statements can be in each other.
const MAX_DEPTH: u32 = 6;

/// About how many statements a statement has within.
const TYPICAL_SIZE: u32 = 16;

/// About how many statements a body has.
const TYPICAL_BODY: u32 = 4;

/// All programs.
pub fn programs() -> impl Strategy<Value = Program> {
    let statement = leaf().prop_recursive(MAX_DEPTH, TYPICAL_SIZE, TYPICAL_BODY, branch);
    let body = vec(statement, 1..20);
    (vec(1..4_u32, 1..3), vec(1..3_u32, 1..3), weighted(0.005), weighted(0.8), body)
        .prop_map(|(capacities, permits, floods, goes_on, body)| Program { capacities, permits, floods, goes_on, body })
}

fn leaf() -> BoxedStrategy<Statement> {
    use Statement::*;
    let statement = prop_oneof![
        8 => seconds().prop_map(|seconds| Wait { seconds }),
        8 => awaits(),
        8 => any::<u8>().prop_map(|task| Cancel { task }),
        2 => Just(CancelSelf),
        4 => Just(Yield),
        6 => (any::<u8>(), timeout()).prop_map(|(channel, timeout)| Put { channel, timeout }),
        6 => (any::<u8>(), timeout()).prop_map(|(channel, timeout)| Get { channel, timeout }),
        1 => any::<u8>().prop_map(|channel| Iterate { channel }),
        1 => any::<u8>().prop_map(|channel| Close { channel }),
        6 => (any::<u8>(), timeout()).prop_map(|(semaphore, timeout)| Acquire { semaphore, timeout }),
        5 => any::<u8>().prop_map(|semaphore| Release { semaphore }),
        3 => select(&[1, 1, 1, 3, 20][..]).prop_map(|n| Fetch { n }),
        2 => (1..4_u8, any::<u8>()).prop_map(|(key, value)| Set { key, value }),
        4 => any::<u8>().prop_map(|task| Look { task }),
        3 => Just(Fail),
        1 => Just(BeStubborn),
    ];
    // Mostly swallowed: an error that is not ends its task, and the handler's ends all.
    (statement, weighted(0.8))
        .prop_map(|(statement, tries)| if tries { Try(Box::new(statement)) } else { statement })
        .boxed()
}

fn branch(inner: BoxedStrategy<Statement>) -> BoxedStrategy<Statement> {
    use Statement::*;
    let body = || vec(inner.clone(), 0..7);
    let starts = select(&["spawn", "spawn", "spawn", "defer", "defer", "delay", "every", "detach"][..]);
    let places = select(&["pcall", "pcall", "index", "sort", "gsub", "handler", "iterator", "call", "tostring"][..]);
    prop_oneof![
        16 => (starts, seconds(), body()).prop_map(|(how, seconds, body)| Start { how, seconds, body }),
        4 => body().prop_map(|body| Finally { body }),
        4 => (any::<u8>(), body()).prop_map(|(semaphore, body)| With { semaphore, body }),
        8 => (places, body()).prop_map(|(place, body)| Inside { place, body }),
        3 => (select(&["wrap", "resume"][..]), 1..4_u8, body())
            .prop_map(|(how, times, body)| Drive { how, times, body }),
        1 => (1..10_u8, body()).prop_map(|(depth, body)| Nest { depth, body }),
    ]
    .boxed()
}

fn awaits() -> impl Strategy<Value = Statement> {
    (select(&["await", "await", "try_await", "await_any", "await_all"][..]), vec(any::<u8>(), 1..4), timeout())
        .prop_map(|(how, tasks, timeout)| Statement::Await { how, tasks, timeout })
}

fn seconds() -> impl Strategy<Value = f64> {
    select(&[0.0, 0.0, 0.5, 1.0, 60.0][..])
}

fn timeout() -> impl Strategy<Value = Option<f64>> {
    option::of(seconds())
}

// === impl Program ===

impl Program {
    /// The program in Luau. It calls the functions of a global table `ledger`.
    pub fn to_luau(&self) -> String {
        let mut writer = Writer { text: String::new(), depth: 0 };
        writer.line("return ledger.main(function()");
        if self.floods {
            writer.line("    ledger.flood(1100)");
        }
        if self.goes_on {
            writer.depth += 1;
            self.body.chunks(1).for_each(|statement| writer.block("pcall(function()", statement));
            writer.depth -= 1;
            writer.line("end)");
        } else {
            writer.body(&self.body, "end)");
        }
        writer.text
    }
}

/// Writes statements, each on a line.
struct Writer {
    text: String,
    depth: usize,
}

impl Writer {
    fn line(&mut self, line: &str) {
        writeln!(self.text, "{:width$}{line}", "", width = 4 * self.depth).expect("a string takes all");
    }

    fn body(&mut self, body: &[Statement], end: &str) {
        self.depth += 1;
        body.iter().for_each(|statement| self.statement(statement));
        self.depth -= 1;
        self.line(end);
    }

    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Start { how, seconds, body } => {
                self.block(&format!("ledger.start('{how}', {seconds}, function()"), body);
            }
            Statement::Finally { body } => self.block("ledger.finally(function()", body),
            Statement::With { semaphore, body } => self.block(&format!("ledger.with({semaphore}, function()"), body),
            Statement::Inside { place, body } => self.block(&format!("ledger.inside('{place}', function()"), body),
            Statement::Drive { how, times, body } => {
                self.block(&format!("ledger.drive('{how}', {times}, function()"), body);
            }
            Statement::Nest { depth, body } => self.block(&format!("ledger.nest({depth}, function()"), body),
            Statement::Try(statement) => {
                let (function, arguments) = call(statement);
                let separator = if arguments.is_empty() { "" } else { ", " };
                self.line(&format!("pcall(ledger.{function}{separator}{arguments})"));
            }
            other => {
                let (function, arguments) = call(other);
                self.line(&format!("ledger.{function}({arguments})"));
            }
        }
    }

    fn block(&mut self, head: &str, body: &[Statement]) {
        self.line(head);
        self.body(body, "end)");
    }
}

/// The function of the ledger that a statement without a body calls, and its arguments.
fn call(statement: &Statement) -> (&'static str, String) {
    match statement {
        Statement::Await { how, tasks, timeout } => {
            let tasks = tasks.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
            ("await", format!("'{how}', {{ {tasks} }}, {}", or_nil(*timeout)))
        }
        Statement::Cancel { task } => ("cancel", task.to_string()),
        Statement::CancelSelf => ("cancel_self", String::new()),
        Statement::Wait { seconds } => ("wait", seconds.to_string()),
        Statement::Yield => ("yield", String::new()),
        Statement::BeStubborn => ("be_stubborn", String::new()),
        Statement::Put { channel, timeout } => ("put", format!("{channel}, {}", or_nil(*timeout))),
        Statement::Get { channel, timeout } => ("get", format!("{channel}, {}", or_nil(*timeout))),
        Statement::Iterate { channel } => ("iterate", channel.to_string()),
        Statement::Close { channel } => ("close", channel.to_string()),
        Statement::Acquire { semaphore, timeout } => ("acquire", format!("{semaphore}, {}", or_nil(*timeout))),
        Statement::Release { semaphore } => ("release", semaphore.to_string()),
        Statement::Fetch { n } => ("fetch", n.to_string()),
        Statement::Set { key, value } => ("set", format!("{key}, {value}")),
        Statement::Look { task } => ("look", task.to_string()),
        Statement::Fail => ("fail", String::new()),
        block => unreachable!("{block:?} has a body"),
    }
}

fn or_nil(timeout: Option<f64>) -> String {
    timeout.map_or("nil".to_owned(), |seconds| seconds.to_string())
}
