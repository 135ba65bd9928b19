//! The crate's public items, compared with `public-api.txt`, so that a change of them is seen.
//!
//! `UPDATE_PUBLIC_API=1 cargo test -p tbd-kafka --test public_api` writes the file.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use quote::ToTokens;
use syn::{Fields, ImplItem, Item, TraitItem, UseTree, Visibility};

/// The listing, and the first public name of each item by its place.
#[derive(Default)]
struct Listing {
    lines: BTreeSet<String>,
    names: HashMap<(PathBuf, String), String>,
}

/// The items of every module, by its path from the crate's root.
type Modules = HashMap<Vec<String>, (PathBuf, Vec<Item>)>;

fn load(modules: &mut Modules, path: Vec<String>, file: PathBuf, folder: &Path) {
    let source = fs::read_to_string(&file).unwrap();
    let items = syn::parse_file(&source).unwrap().items;
    for item in &items {
        let Item::Mod(module) = item else { continue };
        let name = module.ident.to_string();
        let is_test = module.attrs.iter().any(|it| text(it).contains("test"));
        let nested = folder.join(&name);
        let candidates = [folder.join(format!("{name}.rs")), nested.join("mod.rs")];
        let found = candidates.into_iter().find(|file| file.exists());
        if let (false, None, Some(file)) = (is_test, &module.content, found) {
            let path = [&path[..], &[name]].concat();
            load(modules, path, file, &nested);
        }
    }
    modules.insert(path, (file, items));
}

/// Source text without needless blanks.
fn text(tokens: &impl ToTokens) -> String {
    let mut text = tokens.to_token_stream().to_string();
    for (from, to) in [
        (" (", "("),
        ("( ", "("),
        (" )", ")"),
        (" ,", ","),
        (" :", ":"),
        ("& ", "&"),
        (" <", "<"),
        ("< ", "<"),
        (" >", ">"),
        (" ::", "::"),
        (":: ", "::"),
        (", )", ")"),
        (" ;", ";"),
    ] {
        text = text.replace(from, to);
    }
    text.replace("->", " -> ").replace("  ", " ")
}

/// The leaves of a `use`: path and public name.
fn leaves(tree: &UseTree, path: &[String], out: &mut Vec<(Vec<String>, String)>) {
    match tree {
        UseTree::Path(it) => {
            let path = [path, &[it.ident.to_string()]].concat();
            leaves(&it.tree, &path, out);
        }
        UseTree::Name(it) => {
            let path = [path, &[it.ident.to_string()]].concat();
            out.push((path, it.ident.to_string()));
        }
        UseTree::Rename(it) => {
            let path = [path, &[it.ident.to_string()]].concat();
            out.push((path, it.rename.to_string()));
        }
        UseTree::Group(it) => it.items.iter().for_each(|tree| leaves(tree, path, out)),
        // The public surface names each item.
        UseTree::Glob(_) => {}
    }
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_hidden(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|it| text(it).contains("hidden"))
}

fn name_of(item: &Item) -> Option<(String, &Visibility)> {
    Some(match item {
        Item::Struct(it) => (it.ident.to_string(), &it.vis),
        Item::Enum(it) => (it.ident.to_string(), &it.vis),
        Item::Trait(it) => (it.ident.to_string(), &it.vis),
        Item::Type(it) => (it.ident.to_string(), &it.vis),
        Item::Fn(it) => (it.sig.ident.to_string(), &it.vis),
        _ => return None,
    })
}

/// Lists the item that `path` names in `module` as `public`.
fn list(modules: &Modules, module: &[String], path: &[String], public: &str, out: &mut Listing) {
    let (mut module, mut path) = (module.to_vec(), path);
    while let [first, rest @ ..] = path
        && !rest.is_empty()
    {
        match first.as_str() {
            "crate" => module.clear(),
            "self" => {}
            "super" => drop(module.pop()),
            child => module.push(child.to_owned()),
        }
        path = rest;
    }
    let Some((file, items)) = modules.get(&module) else {
        out.lines.insert(format!("{public}: of another crate"));
        return;
    };
    let named = |item: &&Item| name_of(item).is_some_and(|(name, _)| name == path[0]);
    if let Some(item) = items.iter().find(named) {
        return describe(modules, file, item, &path[0], public, out);
    }
    for item in items {
        let Item::Use(item) = item else { continue };
        let mut found = Vec::new();
        leaves(&item.tree, &[], &mut found);
        if let Some((path, _)) = found.iter().find(|(_, name)| *name == path[0]) {
            return list(modules, &module, path, public, out);
        }
    }
    out.lines.insert(format!("{public}: made by a macro"));
}

fn describe(
    modules: &Modules,
    file: &Path,
    item: &Item,
    name: &str,
    public: &str,
    out: &mut Listing,
) {
    let place = (file.to_owned(), name.to_owned());
    if let Some(first) = out.names.get(&place) {
        out.lines.insert(format!("{public} = {first}"));
        return;
    }
    out.names.insert(place, public.to_owned());
    let out = &mut out.lines;
    match item {
        Item::Fn(it) => drop(out.insert(format!("{public}: {}", text(&it.sig)))),
        Item::Type(it) => drop(out.insert(format!("{public} = {}", text(&it.ty)))),
        Item::Trait(it) => {
            out.insert(format!("{public}: trait"));
            for item in &it.items {
                if let TraitItem::Fn(method) = item {
                    out.insert(format!("{public}::{}", text(&method.sig)));
                }
            }
        }
        Item::Struct(it) => {
            out.insert(format!("{public}: struct"));
            fields(&it.fields, public, true, out);
        }
        Item::Enum(it) => {
            out.insert(format!("{public}: enum"));
            for variant in &it.variants {
                let public = format!("{public}::{}", variant.ident);
                out.insert(public.clone());
                fields(&variant.fields, &public, false, out);
            }
        }
        _ => {}
    }
    // Methods are in the item's file; those of a folder's item also in the folder's other files.
    let folder = file.parent().unwrap();
    let is_near = |other: &Path| match file.ends_with("mod.rs") {
        true => other.starts_with(folder),
        false => other == file,
    };
    for (_, items) in modules.values().filter(|(other, _)| is_near(other)) {
        for item in items {
            let Item::Impl(block) = item else { continue };
            let target = text(&block.self_ty);
            let is_same = target == name || target.starts_with(&format!("{name}<"));
            if !is_same || block.trait_.is_some() {
                continue;
            }
            for item in &block.items {
                if let ImplItem::Fn(method) = item
                    && is_public(&method.vis)
                    && !is_hidden(&method.attrs)
                {
                    out.insert(format!("{public}::{}", text(&method.sig)));
                }
            }
        }
    }
}

fn fields(fields: &Fields, public: &str, must_be_public: bool, out: &mut BTreeSet<String>) {
    for (index, field) in fields.iter().enumerate() {
        if !must_be_public || is_public(&field.vis) {
            let name = field.ident.as_ref().map(ToString::to_string);
            let name = name.unwrap_or(index.to_string());
            out.insert(format!("{public}.{name}: {}", text(&field.ty)));
        }
    }
}

/// Names in signatures that are not the crate's own.
const FOREIGN: &str = "Arc AsRef BTreeMap Box Bytes Clone Duration Fn Into IntoIterator Item Option Ord Path \
                       Range Result Self Send String Sync Uuid Vec";

/// The types of the listed signatures that a user cannot name: neither listed nor [`FOREIGN`].
fn unnameable(listed: &BTreeSet<String>) -> BTreeSet<&str> {
    let words = |text| str::split(text, |it: char| !it.is_alphanumeric() && it != '_');
    let public: BTreeSet<&str> = listed
        .iter()
        .filter_map(|line| line.split_once(": ").or(line.split_once(" = ")))
        .filter_map(|(item, _)| item.rsplit("::").next())
        .chain(FOREIGN.split_whitespace())
        .collect();
    let signatures = listed.iter().filter_map(|line| {
        let method = line.split_once("::fn ").map(|(_, it)| it);
        method.or(line.split_once(": ").map(|(_, it)| it))
    });
    signatures
        .flat_map(words)
        .filter(|word| word.starts_with(|first: char| first.is_ascii_uppercase()))
        .filter(|word| word.len() > 1 && !public.contains(word))
        .collect()
}

#[test]
fn the_public_items_are_those_of_the_list() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut modules = Modules::new();
    load(
        &mut modules,
        Vec::new(),
        root.join("src/lib.rs"),
        &root.join("src"),
    );
    let mut listed = Listing::default();
    let public_modules = modules[&Vec::new()].1.iter().filter_map(|item| match item {
        Item::Mod(it) if is_public(&it.vis) && !is_hidden(&it.attrs) => {
            Some(vec![it.ident.to_string()])
        }
        _ => None,
    });
    for module in [Vec::new()].into_iter().chain(public_modules) {
        let prefix = module
            .iter()
            .map(|it| format!("{it}::"))
            .collect::<String>();
        for item in &modules[&module].1 {
            if let Some((name, visibility)) = name_of(item)
                && is_public(visibility)
            {
                list(
                    &modules,
                    &module,
                    std::slice::from_ref(&name),
                    &format!("{prefix}{name}"),
                    &mut listed,
                );
            }
            let Item::Use(item) = item else { continue };
            if !is_public(&item.vis) {
                continue;
            }
            let mut found = Vec::new();
            leaves(&item.tree, &[], &mut found);
            for (path, name) in found {
                list(
                    &modules,
                    &module,
                    &path,
                    &format!("{prefix}{name}"),
                    &mut listed,
                );
            }
        }
    }
    let strange = unnameable(&listed.lines);
    assert_eq!(strange, BTreeSet::new(), "no user can name these types");
    let listed = listed
        .lines
        .into_iter()
        .map(|line| line + "\n")
        .collect::<String>();
    let file = root.join("public-api.txt");
    if std::env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(&file, &listed).unwrap();
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    for (ours, theirs) in listed.lines().zip(known.lines()) {
        assert_eq!(ours, theirs, "see the first line of tests/public_api.rs");
    }
    assert_eq!(listed.lines().count(), known.lines().count());
}

#[test]
fn clients_may_be_shared_or_sent_to_other_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    fn sent<T: Send + 'static>() {}
    shared::<tbd_kafka::Producer>();
    shared::<tbd_kafka::Cluster>();
    shared::<tbd_kafka::Admin>();
    shared::<tbd_kafka::Error>();
    shared::<tbd_kafka::producer::Pending>();
    shared::<tbd_kafka::consumer::Waker>();
    shared::<tbd_kafka::consumer::PendingCommit>();
    sent::<tbd_kafka::Consumer>();
    sent::<tbd_kafka::Reader>();
}
