//! The modules of the engine depend on each other one way only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module of the crate's root, and those that it names.
type Graph = BTreeMap<String, BTreeSet<String>>;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The modules that a source names behind `crate::`, in code that ships.
fn named(source: &str) -> impl Iterator<Item = String> + '_ {
    let ships = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code = ships.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split("crate::").skip(1)).filter_map(|rest| {
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        name.starts_with(|c: char| c.is_lowercase()).then_some(name)
    })
}

fn graph() -> Graph {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut graph = Graph::new();
    for file in files {
        let within = file.strip_prefix(&root).unwrap().with_extension("");
        let module = within.iter().next().unwrap().to_str().unwrap().to_string();
        if module != "lib" {
            let names =
                named(&fs::read_to_string(&file).unwrap()).filter(|name| *name != module).collect::<Vec<_>>();
            graph.entry(module).or_default().extend(names);
        }
    }
    graph
}

/// Takes away modules that name none of those that are left, until there is none: what is left is a circle, and what leads to one.
fn circle(mut graph: Graph) -> Graph {
    loop {
        let left: BTreeSet<String> = graph.keys().cloned().collect();
        let before = graph.len();
        graph.retain(|_, names| names.iter().any(|name| left.contains(name)));
        if graph.len() == before {
            return graph;
        }
    }
}

#[test]
fn the_modules_have_no_circle() {
    let graph = graph();
    for (module, name) in [("worker", "vsmmu"), ("vsmmu", "rules"), ("rules", "command")] {
        assert!(graph[module].contains(name), "{module} uses {name}: the sources are read");
    }
    assert_eq!(circle(graph), Graph::new());
}

#[test]
fn a_circle_is_found() {
    let mut graph = graph();
    graph.entry("command".into()).or_default().insert("worker".into());
    assert!(circle(graph).contains_key("command"));
}

/// The files of the engine and the ring that docs/design.md names in its section "Unsafe", and those that allow unsafe code.
#[test]
fn unsafe_code_is_where_the_design_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let design = fs::read_to_string(root.join("docs/design.md")).unwrap();
    let section = design.split("## Unsafe").nth(1).unwrap().split("\n## ").next().unwrap();
    let said: BTreeSet<_> =
        section.split('`').filter(|name| name.ends_with(".rs")).map(PathBuf::from).collect();
    let mut files = Vec::new();
    ["engine/src", "ring/src"].iter().for_each(|dir| sources(&root.join(dir), &mut files));
    files.retain(|file| fs::read_to_string(file).unwrap().contains("(unsafe_code"));
    let found = files.iter().map(|file| file.strip_prefix(root).unwrap().to_path_buf()).collect();
    assert_eq!(said, found);
}
