//! Safepoints: a load from one page at each place that every endless run of the guest must pass.
//!
//! wasmtime's epochs stop everything, but compare a counter at each turn of each loop, and Luau's
//! interpreter is one loop that turns once per bytecode: programs took 1.5 times as long. A load whose
//! value nobody uses costs next to nothing; and when the page cannot be read, it is a trap. So:
//!
//! | where | what stops it |
//! |---|---|
//! | loops and calls of Luau code | Luau's own interrupt, which its interpreter looks at there anyway |
//! | every other loop, in every other function of the guest | a safepoint after the loop's header |
//! | recursion without a loop | a safepoint at the entry of each function that calls another |
//!
//! What is left between two safepoints is straight code, and single instructions whose work is bounded
//! by the memory. [`super::preempt`] closes the page.

use std::convert::Infallible;

use wasm_encoder::{
    CodeSection, Function, Instruction, MemArg, Module,
    reencode::{Error, Reencode, utils},
};
use wasmparser::{CustomSectionReader, FunctionBody, KnownCustom, Name, Operator, Parser, Payload};

use super::engine::MAX_MEMORY_BYTES;

/// Where the page is in the guest's address space: behind the most memory that a guest can have. So
/// no pointer that the host checks against the memory's size ever leads to it, and neither do
/// `memory.copy`, `memory.fill` and `memory.grow`, nor the reset of a slot: only loads of the guest do.
pub const ADDRESS: u32 = {
    assert!(MAX_MEMORY_BYTES < i32::MAX as usize);
    MAX_MEMORY_BYTES as u32
};

/// Names of the interpreter's functions, whose loops look at Luau's interrupt. As C++ mangles them.
const INTERPRETER: &str = "luau_execute";

/// Adds safepoints to a guest, and leaves out its custom sections: their work is done.
///
/// # Errors
/// When the bytes are no module, or nothing in it is called as the interpreter is: then the guest was
/// stripped of its names, and instrumenting the interpreter would cost what this is to save.
pub fn instrument(guest: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let mut pass = Pass::read(guest)?;
    if pass.interpreter.is_empty() {
        return Err(wasmtime::Error::msg(format!("the guest has no function named {INTERPRETER}: was it stripped?")));
    }
    let mut module = Module::new();
    pass.parse_core_module(&mut module, Parser::new(0), guest)
        .map_err(|error| wasmtime::Error::msg(format!("cannot add safepoints to the guest: {error}")))?;
    Ok(module.finish())
}

struct Pass {
    /// Numbers of the interpreter's functions.
    interpreter: Vec<u32>,
    /// The number of the function whose body comes next.
    next_function: u32,
}

impl Pass {
    fn read(guest: &[u8]) -> wasmtime::Result<Self> {
        let (mut interpreter, mut n_imported) = (Vec::new(), 0);
        for payload in Parser::new(0).parse_all(guest) {
            match payload? {
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        n_imported += u32::from(matches!(import?.ty, wasmparser::TypeRef::Func(_)));
                    }
                }
                Payload::CustomSection(section) => {
                    let KnownCustom::Name(names) = section.as_known() else { continue };
                    for names in names {
                        let Name::Function(functions) = names? else { continue };
                        for function in functions {
                            let function = function?;
                            if function.name.contains(INTERPRETER) {
                                interpreter.push(function.index);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(Self { interpreter, next_function: n_imported })
    }
}

impl Reencode for Pass {
    type Error = Infallible;

    fn parse_function_body(&mut self, code: &mut CodeSection, body: FunctionBody<'_>) -> Result<(), Error<Infallible>> {
        let index = self.next_function;
        self.next_function += 1;
        if self.interpreter.contains(&index) {
            return utils::parse_function_body(self, code, body);
        }
        let mut function = self.new_function_with_parsed_locals(&body)?;
        if calls_another(&body)? {
            add_safepoint(&mut function);
        }
        let mut reader = body.get_operators_reader()?;
        while !reader.eof() {
            let instruction = self.parse_instruction(&mut reader)?;
            function.instruction(&instruction);
            if matches!(instruction, Instruction::Loop(_)) {
                add_safepoint(&mut function);
            }
        }
        code.function(&function);
        Ok(())
    }

    fn parse_custom_section(
        &mut self,
        _module: &mut Module,
        _section: CustomSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        Ok(())
    }
}

fn calls_another(body: &FunctionBody<'_>) -> Result<bool, Error<Infallible>> {
    for operator in body.get_operators_reader()? {
        if matches!(operator?, Operator::Call { .. } | Operator::CallIndirect { .. }) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn add_safepoint(function: &mut Function) {
    // The alignment is a hint; 4 bytes at the start of a page are aligned.
    let memory = MemArg { offset: 0, align: 2, memory_index: 0 };
    function.instruction(&Instruction::I32Const(ADDRESS.cast_signed()));
    function.instruction(&Instruction::I32Load(memory));
    function.instruction(&Instruction::Drop);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module with two functions that loop, the first called `name`.
    fn module(name: &str) -> Vec<u8> {
        use wasm_encoder::{
            BlockType, FunctionSection, ImportSection, MemorySection, MemoryType, NameMap, NameSection, TypeSection,
        };
        let mut types = TypeSection::new();
        types.ty().function([], []);
        let mut imports = ImportSection::new();
        imports.import("a", "b", wasm_encoder::EntityType::Function(0));
        let mut functions = FunctionSection::new();
        functions.function(0).function(0);
        let mut memories = MemorySection::new();
        memories.memory(MemoryType { minimum: 1, maximum: None, memory64: false, shared: false, page_size_log2: None });
        let mut code = CodeSection::new();
        for _ in 0..2 {
            let mut function = Function::new([]);
            function.instruction(&Instruction::Loop(BlockType::Empty));
            function.instruction(&Instruction::End);
            function.instruction(&Instruction::End);
            code.function(&function);
        }
        let (mut names, mut by_index) = (NameSection::new(), NameMap::new());
        by_index.append(1, name);
        by_index.append(2, "other");
        names.functions(&by_index);
        let mut module = Module::new();
        module.section(&types).section(&imports).section(&functions).section(&memories).section(&code).section(&names);
        module.finish()
    }

    /// Safepoints in each function of a module.
    fn safepoints(module: &[u8]) -> Vec<usize> {
        let mut counts = Vec::new();
        for payload in Parser::new(0).parse_all(module) {
            if let Payload::CodeSectionEntry(body) = payload.expect("valid") {
                let loads = body.get_operators_reader().expect("valid").into_iter();
                counts.push(loads.filter(|operator| matches!(operator, Ok(Operator::I32Load { .. }))).count());
            }
        }
        counts
    }

    #[test]
    fn every_loop_but_the_interpreters_has_a_safepoint() {
        let instrumented = instrument(&module("_ZL12luau_executeILb0EEvP9lua_State")).expect("instruments");
        assert_eq!(safepoints(&instrumented), [0, 1]);
    }

    #[test]
    fn a_guest_without_names_is_refused() {
        assert!(instrument(&module("stripped")).is_err());
    }
}
