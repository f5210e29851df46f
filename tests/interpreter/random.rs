//! Random programs for Luau's interpreter, the same ones for native Luau and for the guest. Variables have kinds, so
//! that most of what is written runs; one in a hundred is of another kind.

/// Programs whose outcomes share a line of what is printed.
const GROUP: u64 = 10;

/// How deeply statements lie in others.
const MAX_DEPTH: u32 = 3;

/// What all programs call.
const LIBRARY: &str = include_str!("random.luau");

/// What a variable or an expression is meant to be.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Number,
    Object,
    Table,
    Function,
    Any,
}

/// A program's variables, two of a kind. In functions within it they are upvalues.
const VARIABLES: [(Kind, [&str; 2]); 5] = [
    (Kind::Number, ["a", "b"]),
    (Kind::Object, ["o", "p"]),
    (Kind::Table, ["t", "u"]),
    (Kind::Function, ["f", "g"]),
    (Kind::Any, ["x", "y"]),
];

struct Writer {
    text: String,
    seed: u64,
}

/// A script of random programs, which prints a line for each ten of them. `PROGRAMS` and `SEED` in the environment ask
/// for more of them, or others.
pub fn script() -> String {
    let setting = |name, default| std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default);
    let mut writer = Writer { text: LIBRARY.into(), seed: setting("SEED", 1) };
    for index in 0..setting("PROGRAMS", 100) {
        writer.text += "run(function(a, b, o, t, f, x, ...)\n\tlocal p, u, g, y = o, t, f, x\n";
        writer.block(0, 12);
        writer.text += "\treturn a, b, t[1], t.g, o.n, x, y\nend)\n";
        if (index + 1) % GROUP == 0 {
            writer.text += &format!("finish(\"{}\")\n", index + 1);
        }
    }
    writer.text
}

// === impl Writer ===

impl Writer {
    /// A number below `n`. A linear congruence, of which the upper bits are good enough.
    fn below(&mut self, n: usize) -> usize {
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) as usize % n
    }

    fn one_of(&mut self, list: &[&'static str]) -> &'static str {
        list[self.below(list.len())]
    }

    fn kind(&mut self) -> Kind {
        VARIABLES[self.below(VARIABLES.len())].0
    }

    fn variable(&mut self, kind: Kind) -> &'static str {
        let kind = if self.below(100) == 0 { self.kind() } else { kind };
        let (_, names) = VARIABLES.iter().find(|(of, _)| *of == kind).expect("each kind has variables");
        self.one_of(names)
    }

    fn block(&mut self, depth: u32, most: usize) {
        for _ in 0..1 + self.below(most) {
            let statement = self.statement(depth);
            self.text += &statement;
            if depth == 0 {
                self.text += "note(a) note(x)\n";
            }
        }
    }

    /// The text of a block that stands within another.
    fn inner(&mut self, depth: u32) -> String {
        let outer = std::mem::take(&mut self.text);
        self.block(depth + 1, 3);
        std::mem::replace(&mut self.text, outer)
    }

    fn statement(&mut self, depth: u32) -> String {
        if depth < MAX_DEPTH && self.below(2) == 0 { self.compound(depth) } else { self.simple() }
    }

    fn simple(&mut self) -> String {
        let kind = self.kind();
        let (name, value) = (self.variable(kind), self.expression(kind, 2));
        let holder = if self.below(2) == 0 { Kind::Table } else { Kind::Object };
        let holder = self.variable(holder);
        match self.below(8) {
            0..=2 => format!("{name} = {value}\n"),
            3 => format!("{holder}.{} = {value}\n", self.one_of(&["g", "n", "h", "late"])),
            4 => {
                // Not by an object: the order of those in a table depends on their addresses.
                let index = self.index();
                format!("do local i = {index} {holder}[if type(i) == \"number\" then i else 1] = {value} end\n")
            }
            5 => {
                let (to, operator) = (self.variable(Kind::Number), self.one_of(&["+=", "-=", "*=", "/=", "%="]));
                format!("{to} {operator} {}\n", self.expression(Kind::Number, 1))
            }
            6 => format!("note({value})\n"),
            _ => format!("{name}, {} = {}\n", self.variable(Kind::Any), self.call(1)),
        }
    }

    fn compound(&mut self, depth: u32) -> String {
        let kind = self.kind();
        let (name, value) = (self.variable(kind), self.expression(kind, 2));
        let (first, second) = (self.inner(depth), self.inner(depth));
        match self.below(8) {
            0 => format!("if {} then\n{first}else\n{second}end\n", self.condition()),
            1 => {
                let bounds = self.one_of(&["1, 5", "6, 1, -2", "a, 4", "0, 1, 0.25", "1, b", "\"1\", 3"]);
                format!("for i = {bounds} do\nif tick() then break end\na += i\n{first}end\n")
            }
            2 => {
                let over =
                    self.one_of(&["t", "u", "pairs(t)", "ipairs(u)", "ipairs({ a, b })", "next, t", "o", "{ a, x }"]);
                format!("for k, v in {over} do\nif tick() then break end\nx = v\n{first}y = k\nend\n")
            }
            3 => format!("while {} do\nif tick() then break end\n{first}end\n", self.condition()),
            4 => {
                let argument = self.expression(Kind::Number, 1);
                format!("{name} = (function(...)\ntick()\n{first}return {value}, ...\nend)({argument}, x)\n")
            }
            5 => format!("x, y = pcall(function()\n{first}return {value}\nend)\nnote(y)\n"),
            6 => format!(
                "for v, w in coroutine.wrap(function()\n{first}coroutine.yield({value}, 1)\n{second}end) do\n\
                 if tick() then break end\nx = v\nend\n"
            ),
            _ => format!(
                "do\nlocal own = {value}\n\
                 f = function(v) tick() own, v = v, own return v end\n{first}g = f\nend\n"
            ),
        }
    }

    fn condition(&mut self) -> String {
        let (left, right) = (self.expression(Kind::Number, 1), self.expression(Kind::Number, 1));
        match self.below(8) {
            0 => format!("not ({left} < {right})"),
            1 => format!("{} == {}", self.variable(Kind::Any), self.one_of(&["nil", "true", "1", "\"9\"", "x", "o"])),
            2 => format!("{} ~= {}", self.variable(Kind::Any), self.one_of(&["nil", "false", "2", "\"text\"", "p"])),
            3 => format!("{left} <= {right} and {}", self.variable(Kind::Any)),
            4 => format!("{} or {left} > {right}", self.variable(Kind::Any)),
            5 => format!("o {} p", self.one_of(&["==", "~=", "<", "<="])),
            6 => format!("{left} >= {}", self.one_of(&["0", "2.5", "-1"])),
            _ => format!("{left} < {right}"),
        }
    }

    fn index(&mut self) -> String {
        match self.below(4) {
            0 => self.one_of(&["1", "2", "3", "4", "\"g\"", "0.5", "300"]).into(),
            1 => self.variable(Kind::Number).into(),
            2 => self.one_of(&["#t + 1", "#u", "a % 4 + 1", "x or 1"]).into(),
            _ => "1".into(),
        }
    }

    fn call(&mut self, depth: u32) -> String {
        let (kind, of) = (self.kind(), self.variable(Kind::Object));
        let argument = self.expression(kind, depth.saturating_sub(1));
        let function = self.variable(Kind::Function);
        match self.below(10) {
            0 => format!("{of}:m({argument}, a)"),
            1 => format!("give({of}):{}({argument})", self.one_of(&["m", "own"])),
            2 => format!("{of}:{}()", self.one_of(&["c", "len"])),
            3 => format!("give({of}):{}()", self.one_of(&["c", "len"])),
            8 | 9 => format!("{of}:own({argument}, x)"),
            4 => format!("{of}({argument})"),
            5 => format!("give({argument}, give(a, {function}(x)))"),
            6 => format!("{function}({argument})"),
            _ => format!("{function}({argument}, b)"),
        }
    }

    fn expression(&mut self, kind: Kind, depth: u32) -> String {
        if depth == 0 || self.below(4) == 0 {
            return self.variable(kind).into();
        }
        let (left, right) = (self.expression(Kind::Number, depth - 1), self.expression(Kind::Number, depth - 1));
        match kind {
            Kind::Number => match self.below(9) {
                0 | 1 => format!("({left} {} {right})", self.one_of(&["+", "-", "*", "/", "//", "%"])),
                2 => format!(
                    "({left} {} {})",
                    self.one_of(&["+", "-", "*", "/", "//", "%"]),
                    self.one_of(&["2", "0.5", "-3", "0"])
                ),
                3 => format!("({} {} {right})", self.one_of(&["2", "10", "-1"]), self.one_of(&["+", "-", "*", "/"])),
                4 => format!("(- {left})"),
                5 => format!(
                    "{}({left})",
                    self.one_of(&["math.floor", "math.abs", "math.sign", "math.ceil", "math.round", "tonumber"])
                ),
                6 => format!("math.{}({left}, {})", self.one_of(&["max", "min"]), self.one_of(&["a", "1", "b"])),
                7 => format!("#{}", self.variable(Kind::Table)),
                _ => self.one_of(&["0", "1", "2", "-1", "0.5", "1e9", "(a or 1)", "(b and 3)"]).into(),
            },
            Kind::Object => self.one_of(&["fresh(a, b)", "fresh(x, 1)", "(p or o)", "give(o)"]).into(),
            Kind::Table => match self.below(3) {
                0 => format!("{{ {left}, {right}, g = {left} }}"),
                1 => "table.clone(t)".into(),
                _ => "{}".into(),
            },
            Kind::Function => match self.below(3) {
                0 => format!("function(v, ...) tick() a = {left} return v, ... end"),
                1 => format!("function(v) tick() x, y = y, v return {right} end"),
                _ => "give".into(),
            },
            Kind::Any => match self.below(8) {
                0 => format!("{}.{}", self.variable(Kind::Table), self.one_of(&["g", "h", "late", "n"])),
                1 => format!("{}.{}", self.variable(Kind::Object), self.one_of(&["g", "f", "n", "none"])),
                2 => format!("{}[{}]", self.variable(Kind::Table), self.index()),
                3 => format!("{}[{}]", self.variable(Kind::Object), self.index()),
                4 => self.call(depth),
                5 => format!("(x {} {left})", self.one_of(&["and", "or"])),
                6 => format!("type({})", self.variable(Kind::Any)),
                _ => format!("(\"s\" .. {left})"),
            },
        }
    }
}
