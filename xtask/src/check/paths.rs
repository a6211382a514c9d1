//! The paths that Rust source mentions: `a::b` anywhere, and the leaves of `use` trees.
//!
//! A scanner and not a parser: it tells `aya::maps` in code from the word in a comment or a message, in a few
//! milliseconds and without a dependency.

use std::iter::Peekable;

/// A path in the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    /// Line, from 1.
    pub(crate) line: usize,
    /// Its segments; `*` for a glob.
    pub(crate) segments: Vec<String>,
}

/// Every path of the text outside comments, literals and in-file test modules.
pub(crate) fn mentions(text: &str) -> Vec<Mention> {
    let code = without_tests(&without_prose(text));
    let mut tokens = tokens(&code).into_iter().peekable();
    let mut found = Vec::new();
    while let Some(token) = tokens.next() {
        let Token::Word(word) = &token.kind else {
            continue;
        };
        if word == "use" {
            use_tree(&mut tokens, &[], &mut found);
            continue;
        }
        let mut segments = vec![word.clone()];
        while tokens.next_if(|next| next.kind == Token::Colons).is_some() {
            match tokens.peek() {
                Some(Spot {
                    kind: Token::Word(word),
                    ..
                }) => segments.push(word.clone()),
                _ => break,
            }
            tokens.next();
        }
        if segments.len() > 1 {
            found.push(Mention {
                line: token.line,
                segments,
            });
        }
    }
    found
}

/// Every method that is called outside in-file test modules, with its line.
pub(crate) fn calls(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(&without_tests(&without_prose(text)));
    let called = tokens.windows(3).filter_map(|window| {
        let [dot, name, open] = window else {
            return None;
        };
        match (&dot.kind, &name.kind, &open.kind) {
            (Token::Other('.'), Token::Word(word), Token::Other('(')) => {
                Some((name.line, word.clone()))
            }
            _ => None,
        }
    });
    called.collect()
}

/// Every word and every other character of the code, tests included, with its line. Paths lose their colons.
pub(crate) fn words(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(&without_prose(text)).into_iter();
    let words = tokens.filter_map(|Spot { line, kind }| match kind {
        Token::Word(word) => Some((line, word)),
        Token::Other(character) => Some((line, character.to_string())),
        Token::Colons => None,
    });
    words.collect()
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Colons,
    Other(char),
}

struct Spot {
    line: usize,
    kind: Token,
}

/// Reads one branch of a `use` declaration, up to what ends it.
fn use_tree(
    tokens: &mut Peekable<impl Iterator<Item = Spot>>,
    prefix: &[String],
    found: &mut Vec<Mention>,
) {
    let mut segments = prefix.to_vec();
    while let Some(spot) =
        tokens.next_if(|next| !matches!(next.kind, Token::Other(';' | ',' | '}')))
    {
        let line = spot.line;
        match spot.kind {
            Token::Colons => continue,
            Token::Word(word) if word == "as" => {
                tokens.next();
                continue;
            }
            Token::Word(word) if word == "self" && !segments.is_empty() => {}
            Token::Word(word) => segments.push(word),
            Token::Other('*') => segments.push("*".to_owned()),
            Token::Other('{') => {
                while tokens.peek().is_some() {
                    use_tree(tokens, &segments, found);
                    match tokens.next() {
                        Some(Spot {
                            kind: Token::Other(','),
                            ..
                        }) => {}
                        _ => break,
                    }
                }
                return;
            }
            // `impl Trait + use<'a>` and the like: no path.
            Token::Other(_) => return,
        }
        let goes_on = tokens.peek().is_some_and(|next| next.kind == Token::Colons);
        if !goes_on {
            found.push(Mention {
                line,
                segments: segments.clone(),
            });
        }
    }
}

fn tokens(code: &str) -> Vec<Spot> {
    let mut spots = Vec::new();
    for (index, text) in code.lines().enumerate() {
        let mut push = |kind| {
            spots.push(Spot {
                line: index + 1,
                kind,
            })
        };
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let length = rest
                .find(|c: char| !is_word(c))
                .unwrap_or(rest.len())
                .max(c.len_utf8());
            if is_word(c) {
                push(Token::Word(rest[..length].to_owned()));
            } else if rest.starts_with("::") {
                push(Token::Colons);
                rest = &rest[2..];
                continue;
            } else if !c.is_whitespace() {
                push(Token::Other(c));
            }
            rest = &rest[length..];
        }
    }
    spots
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The text with comments and the insides of literals as blanks; lines stay where they are. A literal that is a path of
/// this crate, as serde's attributes have it, loses just its quotes.
fn without_prose(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = prose_length(rest, code.chars().next_back());
        if length == 0 {
            code.push(c);
            rest = &rest[c.len_utf8()..];
        } else {
            let (prose, after) = rest.split_at(length);
            match path_in(prose) {
                Some(path) => code.extend([" ", path, " "]),
                None => code.extend(prose.chars().map(|c| if c == '\n' { c } else { ' ' })),
            }
            rest = after;
        }
    }
    code
}

/// The path of this crate that a literal is.
fn path_in(literal: &str) -> Option<&str> {
    let path = literal.strip_prefix('"')?.strip_suffix('"')?;
    let (root, _) = path.split_once("::")?;
    let is_path = path.chars().all(|c| is_word(c) || c == ':');
    (is_path && ["crate", "self", "super"].contains(&root)).then_some(path)
}

/// How many bytes of `rest` are a comment or a literal that begins there; 0 when none does.
fn prose_length(rest: &str, before: Option<char>) -> usize {
    let until = |from: usize, end: &str| {
        rest[from..]
            .find(end)
            .map_or(rest.len(), |at| from + at + end.len())
    };
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return block_comment_length(rest);
    }
    if rest.starts_with('"') {
        return quoted_length(rest, '"');
    }
    // `br"` and `cr"` arrive here with the prefix as the character before.
    if rest.starts_with('r') && before.is_none_or(|c| !is_word(c) || c == 'b' || c == 'c') {
        let hashes = rest[1..].chars().take_while(|&c| c == '#').count();
        if rest[1 + hashes..].starts_with('"') {
            return until(2 + hashes, &format!("\"{}", "#".repeat(hashes)));
        }
    }
    if let Some(inside) = rest.strip_prefix('\'') {
        let mut chars = inside.chars();
        let is_char = match chars.next() {
            Some('\\') => true,
            Some(_) => chars.next() == Some('\''),
            None => false,
        };
        // Otherwise a lifetime.
        return if is_char {
            quoted_length(rest, '\'')
        } else {
            0
        };
    }
    0
}

fn block_comment_length(rest: &str) -> usize {
    let mut depth = 0usize;
    let mut at = 0;
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    rest.len()
}

/// The length of a literal with escapes that begins and ends with `quote`.
fn quoted_length(rest: &str, quote: char) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if is_escaped {
            is_escaped = false;
        } else if c == '\\' {
            is_escaped = true;
        } else if c == quote {
            return at + c.len_utf8();
        }
    }
    rest.len()
}

/// The code without in-file test modules: a test may read files where its subject must not.
/// Relies on the layout of rustfmt: such a module begins and ends in the first column.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut lines = code.lines().peekable();
    let mut is_inside = false;
    while let Some(line) = lines.next() {
        let opens = |next: &&str| next.starts_with("mod ") && next.trim_end().ends_with('{');
        if line.trim_end() == "#[cfg(test)]" && lines.peek().is_some_and(opens) {
            is_inside = true;
        }
        if !is_inside {
            kept.push_str(line);
        } else if line.trim_end() == "}" {
            is_inside = false;
        }
        kept.push('\n');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let paths = mentions(text).into_iter();
        paths
            .map(|path| format!("{} {}", path.line, path.segments.join("::")))
            .collect()
    }

    #[test]
    fn use_trees_are_followed_to_their_leaves() {
        let text = "use std::{\n    collections::BTreeMap,\n    fs::{self, File as F},\n    net::*,\n};\n\
                    use aya;\npub use ::tokio::select;\nfn f() {}\n";
        let expected = [
            "2 std::collections::BTreeMap",
            "3 std::fs",
            "3 std::fs::File",
            "4 std::net::*",
            "6 aya",
            "7 tokio::select",
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn paths_in_expressions_types_and_attributes_are_found() {
        let text = "#[tokio::main]\nfn f(x: &aya::Ebpf) -> Vec<u8> {\n    let a = <u8 as aya::Pod>::id();\n    std::fs::read(a)\n}\n";
        let expected = [
            "1 tokio::main",
            "2 aya::Ebpf",
            "3 aya::Pod",
            "4 std::fs::read",
        ];
        assert_eq!(found(text), expected);
    }

    #[test]
    fn comments_and_literals_are_no_mentions() {
        let text = "//! See aya::maps.\n/* std::fs /* a::b */ c::d */\nconst A: &str = \"e::f \\\" g::h\";\n\
                    const B: &[u8] = br#\"i::j \" k::l\"#; const C: char = '\"'; const D: char = '\\'';\n\
                    fn f<'a>(x: &'a str) { m::n(x) } // o::p\n";
        assert_eq!(found(text), ["5 m::n"]);
    }

    #[test]
    fn a_literal_that_is_a_path_of_the_crate_is_a_mention() {
        let text = "#[serde(with = \"crate::go_json\")]\nconst A: &str = \"crate::a b\"; const B: &str = \"a::b\";\n";
        assert_eq!(found(text), ["1 crate::go_json"]);
    }

    #[test]
    fn calls_of_methods_are_found_and_fields_and_functions_are_not() {
        let text = "fn f() {\n    now.elapsed().elapsed; elapsed() // a.b()\n}\n#[cfg(test)]\nmod tests {\n    a.b();\n}\n";
        assert_eq!(calls(text), [(2, "elapsed".to_owned())]);
    }

    #[test]
    fn modules_of_tests_in_the_file_are_left_out() {
        let text = "use a::b;\n#[cfg(test)]\nmod tests {\n    use std::fs;\n}\n#[cfg(test)]\nmod proptests;\nuse c::d;\n";
        assert_eq!(found(text), ["1 a::b", "8 c::d"]);
    }
}
