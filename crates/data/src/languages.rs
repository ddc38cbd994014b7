//! The programming and configuration languages that are known by name, and by what
//! words their definitions begin.

use std::path::Path;

/// How a language's files are told and cut.
pub(crate) struct Language {
    pub(crate) name: &'static str,
    /// Extensions and whole file names, in lower case.
    files: &'static [&'static str],
    /// Programs of a `#!` line.
    interpreters: &'static [&'static str],
    /// Words that begin a definition, after modifiers such as `pub` or `static`.
    pub(crate) definitions: &'static [&'static str],
    /// Functions begin with a type or a name and show by their `(...) {`.
    pub(crate) c_functions: bool,
}

const NONE: &[&str] = &[];

const fn language(
    name: &'static str,
    files: &'static [&'static str],
    definitions: &'static [&'static str],
) -> Language {
    Language {
        name,
        files,
        interpreters: NONE,
        definitions,
        c_functions: false,
    }
}

impl Language {
    const fn c_functions(mut self) -> Self {
        self.c_functions = true;
        self
    }

    const fn run_by(mut self, interpreters: &'static [&'static str]) -> Self {
        self.interpreters = interpreters;
        self
    }
}

const SCRIPT_WORDS: &[&str] = &[
    "function",
    "function*",
    "class",
    "interface",
    "enum",
    "namespace",
    "module",
    "type",
    "describe",
];
const C_WORDS: &[&str] = &[
    "struct",
    "class",
    "union",
    "enum",
    "namespace",
    "typedef",
    "template",
];

#[rustfmt::skip]
static LANGUAGES: &[Language] = &[
    language("Rust", &["rs"], &["fn", "struct", "enum", "union", "trait", "impl", "impl<", "mod", "macro_rules!", "type"]),
    language("Python", &["py", "pyi", "pyw"], &["def", "class"]).run_by(&["python", "python2", "python3"]),
    language("JavaScript", &["js", "jsx", "mjs", "cjs"], SCRIPT_WORDS).c_functions().run_by(&["node"]),
    language("TypeScript", &["ts", "tsx", "mts", "cts"], SCRIPT_WORDS).c_functions().run_by(&["deno", "bun"]),
    language("C", &["c", "h"], C_WORDS).c_functions(),
    language("C++", &["cpp", "cc", "cxx", "hpp", "hh", "hxx", "ino", "cu", "cuh"], C_WORDS).c_functions(),
    language("Objective-C", &["m", "mm"], &["@interface", "@implementation", "@protocol", "-", "+"]).c_functions(),
    language("Java", &["java"], &["class", "interface", "enum", "record", "@interface"]).c_functions(),
    language("C#", &["cs"], &["class", "interface", "enum", "record", "struct", "namespace"]).c_functions(),
    language("Kotlin", &["kt", "kts"], &["fun", "class", "interface", "object", "enum", "companion"]),
    language("Scala", &["scala", "sc"], &["def", "class", "trait", "object", "enum", "case"]),
    language("Swift", &["swift"], &["func", "class", "struct", "enum", "protocol", "extension", "actor", "init"]),
    language("Dart", &["dart"], &["class", "mixin", "enum", "extension"]).c_functions(),
    language("Go", &["go"], &["func", "type"]),
    language("Zig", &["zig"], &["fn", "test"]),
    language("Nim", &["nim"], &["proc", "func", "method", "template", "macro", "iterator", "type"]),
    language("Ruby", &["rb", "rake", "gemspec", "gemfile", "rakefile"], &["def", "class", "module"]).run_by(&["ruby"]),
    language("PHP", &["php"], &["function", "class", "interface", "trait", "enum", "namespace"]).run_by(&["php"]),
    language("Perl", &["pl", "pm"], &["sub", "package"]).run_by(&["perl"]),
    language("Lua", &["lua"], &["function"]).run_by(&["lua"]),
    language("Shell", &["sh", "bash", "zsh", "fish", "ksh"], &["function"]).c_functions().run_by(&["sh", "bash", "zsh", "fish", "ksh", "dash"]),
    language("PowerShell", &["ps1", "psm1"], &["function", "class"]).run_by(&["pwsh"]),
    language("R", &["r"], NONE).run_by(&["Rscript"]),
    language("Julia", &["jl"], &["function", "struct", "mutable", "module", "macro"]).run_by(&["julia"]),
    language("Elixir", &["ex", "exs"], &["def", "defp", "defmodule", "defmacro", "defimpl", "defprotocol"]).run_by(&["elixir"]),
    language("Erlang", &["erl", "hrl"], NONE),
    language("Haskell", &["hs"], &["data", "newtype", "class", "instance", "type"]),
    language("OCaml", &["ml", "mli"], &["let", "module", "type"]),
    language("F#", &["fs", "fsx"], &["let", "module", "type"]),
    language("Clojure", &["clj", "cljs", "cljc", "edn"], &["(defn", "(defn-", "(def", "(defmacro", "(defprotocol", "(defrecord"]),
    language("Lisp", &["lisp", "el", "scm", "rkt"], &["(defun", "(defmacro", "(defvar", "(define", "(defclass"]),
    language("SQL", &["sql"], &["create", "CREATE", "alter", "ALTER"]),
    language("Fortran", &["f", "f90", "f95", "f03"], &["subroutine", "function", "module", "program"]),
    language("Pascal", &["pas", "pp"], &["procedure", "function", "type"]),
    language("Visual Basic", &["vb", "bas"], &["Sub", "Function", "Class", "Module"]),
    language("Groovy", &["groovy", "gradle", "jenkinsfile"], &["def", "class", "interface"]).c_functions(),
    language("Protocol Buffers", &["proto"], &["message", "service", "enum"]),
    language("GraphQL", &["graphql", "gql"], &["type", "input", "enum", "interface", "query", "mutation"]),
    language("Terraform", &["tf", "hcl"], &["resource", "module", "variable", "output", "data"]),
    language("CUE", &["cue"], NONE),
    language("Nix", &["nix"], NONE),
    language("CSS", &["css", "scss", "sass", "less"], NONE),
    language("Vue", &["vue"], NONE),
    language("Svelte", &["svelte"], NONE),
    language("Vim script", &["vim"], &["function", "function!"]),
    language("Make", &["mk", "makefile", "gnumakefile"], NONE),
    language("CMake", &["cmake", "cmakelists.txt"], NONE),
    language("Dockerfile", &["dockerfile", "containerfile"], NONE),
    language("Just", &["just", "justfile"], NONE),
    language("Assembly", &["s", "asm"], NONE),
    language("TeX", &["tex", "sty", "cls"], NONE),
    language("BibTeX", &["bib"], NONE),
    language("TOML", &["toml"], NONE),
    language("YAML", &["yaml", "yml"], NONE),
    language("XML", &["xml", "xsd", "xsl", "svg", "plist"], NONE),
    language("INI", &["ini", "cfg", "conf", "properties", "editorconfig", "gitconfig", "service"], NONE),
    language("JSON with comments", &["jsonc", "json5"], NONE),
    language("diff", &["diff", "patch"], NONE),
];

/// By whole file name (`Makefile`) or by extension (in lower case).
pub(crate) fn by_path(path: &Path, extension: &str) -> Option<&'static Language> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    let find = |file: &str| LANGUAGES.iter().find(|l| l.files.contains(&file));
    find(&name).or_else(|| find(extension))
}

pub(crate) fn by_name(name: &str) -> Option<&'static Language> {
    LANGUAGES
        .iter()
        .find(|language| language.name.eq_ignore_ascii_case(name))
}

/// By a first line such as `#!/usr/bin/env python3`.
pub(crate) fn by_shebang(start: &str) -> Option<&'static Language> {
    let line = start.strip_prefix("#!")?.lines().next()?;
    let mut words = line.split_whitespace();
    let program = words.next()?.rsplit('/').next()?;
    let program = if program == "env" {
        words.find(|word| !word.starts_with('-'))?
    } else {
        program
    };
    LANGUAGES
        .iter()
        .find(|language| language.interpreters.contains(&program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages_are_found_by_name_extension_and_first_line() {
        let name = |path: &str| {
            let extension = path.rsplit('.').next().unwrap_or_default();
            by_path(Path::new(path), extension).map(|l| l.name)
        };
        assert_eq!(name("src/main.rs"), Some("Rust"));
        assert_eq!(name("Makefile"), Some("Make"));
        assert_eq!(name("CMakeLists.txt"), Some("CMake"));
        assert_eq!(name("notes.xyz"), None);
        let run_by = |line: &str| by_shebang(line).map(|l| l.name);
        assert_eq!(run_by("#!/usr/bin/env -S python3 -u\nx"), Some("Python"));
        assert_eq!(run_by("#!/bin/sh\n"), Some("Shell"));
        assert_eq!(run_by("# comment"), None);
        assert_eq!(by_name("python").map(|l| l.name), Some("Python"));
    }

    #[test]
    fn no_extension_belongs_to_two_languages() {
        let mut files: Vec<_> = LANGUAGES.iter().flat_map(|l| l.files).collect();
        files.sort();
        let all = files.len();
        files.dedup();
        assert_eq!(files.len(), all);
    }
}
