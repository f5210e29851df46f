//! What a VM's state is made of beside its memory.
//!
//! A VM that has come to its end is made as new instead of being replaced, see [`super::super::renewal`]. For that all
//! that its code can change must be known, and within the host's reach: its memory, and its mutable globals, which
//! this pass exports. Tables and segments the code must leave alone.

use std::convert::Infallible;

use wasm_encoder::{
    ExportKind, ExportSection, Module,
    reencode::{Error, Reencode, utils},
};
use wasmparser::{ExportSectionReader, Operator, Parser, Payload, TypeRef};

/// What the names of exported globals begin with; their indices follow.
pub const GLOBAL: &str = "mutable global ";

/// Exports a guest's mutable globals.
///
/// # Errors
/// When the bytes are no module, or its code can change what is neither memory nor global.
pub fn expose(guest: &[u8]) -> wasmtime::Result<Vec<u8>> {
    let (mut mutable, mut next_global) = (Vec::new(), 0);
    for payload in Parser::new(0).parse_all(guest) {
        match payload? {
            Payload::ImportSection(imports) => {
                for import in imports.into_imports() {
                    if matches!(import?.ty, TypeRef::Global(_)) {
                        return Err(wasmtime::Error::msg("the guest imports a global"));
                    }
                }
            }
            Payload::GlobalSection(globals) => {
                for global in globals {
                    if global?.ty.mutable {
                        mutable.push(next_global);
                    }
                    next_global += 1;
                }
            }
            Payload::CodeSectionEntry(body) => {
                for operator in body.get_operators_reader()? {
                    check(&operator?)?;
                }
            }
            _ => {}
        }
    }
    let mut module = Module::new();
    Exposing { mutable }
        .parse_core_module(&mut module, Parser::new(0), guest)
        .map_err(|error| wasmtime::Error::msg(format!("cannot export the guest's globals: {error}")))?;
    Ok(module.finish())
}

fn check(operator: &Operator<'_>) -> wasmtime::Result<()> {
    match operator {
        Operator::TableSet { .. }
        | Operator::TableGrow { .. }
        | Operator::TableFill { .. }
        | Operator::TableCopy { .. }
        | Operator::TableInit { .. }
        | Operator::ElemDrop { .. }
        | Operator::MemoryInit { .. }
        | Operator::DataDrop { .. } => {
            Err(wasmtime::Error::msg(format!("the guest changes more than its memory: {operator:?}")))
        }
        _ => Ok(()),
    }
}

struct Exposing {
    mutable: Vec<u32>,
}

impl Reencode for Exposing {
    type Error = Infallible;

    fn parse_export_section(
        &mut self,
        exports: &mut ExportSection,
        section: ExportSectionReader<'_>,
    ) -> Result<(), Error<Infallible>> {
        utils::parse_export_section(self, exports, section)?;
        for index in &self.mutable {
            exports.export(&format!("{GLOBAL}{index}"), ExportKind::Global, *index);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use wasm_encoder::{
        CodeSection, ConstExpr, ElementSection, Elements, Function, FunctionSection, GlobalSection, GlobalType,
        Instruction, RefType, TableSection, TableType, TypeSection, ValType,
    };

    use super::*;

    /// A guest with a constant and a variable, whose one function does `instruction` and exports nothing of them.
    fn guest(instruction: &Instruction<'_>) -> Vec<u8> {
        let (mut types, mut functions, mut tables) = (TypeSection::new(), FunctionSection::new(), TableSection::new());
        types.ty().function([], []);
        functions.function(0);
        let table =
            TableType { element_type: RefType::FUNCREF, minimum: 1, maximum: None, table64: false, shared: false };
        tables.table(table);
        let mut globals = GlobalSection::new();
        for mutable in [false, true] {
            let global = GlobalType { val_type: ValType::I32, mutable, shared: false };
            globals.global(global, &ConstExpr::i32_const(7));
        }
        let (mut exports, mut elements) = (ExportSection::new(), ElementSection::new());
        exports.export("run", ExportKind::Func, 0);
        elements.passive(Elements::Functions([0].as_slice().into()));
        let (mut code, mut function) = (CodeSection::new(), Function::new([]));
        function.instruction(instruction).instruction(&Instruction::End);
        code.function(&function);
        let mut module = Module::new();
        module.section(&types).section(&functions).section(&tables).section(&globals).section(&exports);
        module.section(&elements).section(&code);
        module.finish()
    }

    #[test]
    fn what_is_mutable_is_exported_and_nothing_else() {
        let exposed = expose(&guest(&Instruction::Nop)).expect("has globals");
        let mut names = Vec::new();
        for payload in Parser::new(0).parse_all(&exposed) {
            if let Payload::ExportSection(exports) = payload.expect("valid") {
                names.extend(exports.into_iter().map(|export| export.expect("valid").name.to_owned()));
            }
        }
        assert_eq!(names, ["run", "mutable global 1"]);
    }

    #[test]
    fn a_guest_that_changes_more_than_memory_and_globals_is_refused() {
        let problem = expose(&guest(&Instruction::ElemDrop(0))).expect_err("drops a segment").to_string();
        assert!(problem.contains("ElemDrop"), "{problem}");
    }
}
