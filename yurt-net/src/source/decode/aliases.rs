//! Aliases in a list: which items would grow too far, or refer to nothing, and a text in which they do not.
//!
//! The parser expands aliases as it goes. It stops where they have added too much, and is then in the middle of an
//! item, so all the others would be lost with it. Nothing is expanded here: one pass over the text adds up what each
//! anchor comes to. Items that do not fit are named by their index, and their aliases are overwritten with empty values
//! of the same length. Anchors stay, and so does what they contain, because other items may refer to them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use granit_parser::{Event, Options, Parser};

/// What aliases add when they are expanded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    /// Scalars, and the beginnings and ends of lists and maps.
    pub(super) events: usize,
    /// Bytes of scalars.
    pub(super) bytes: usize,
}

impl Size {
    /// The cost of what cannot be expanded: no limit admits it.
    const ENDLESS: Self = Self {
        events: usize::MAX,
        bytes: usize::MAX,
    };

    fn plus(self, other: Self) -> Self {
        Self {
            events: self.events.saturating_add(other.events),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    /// What is left of it; `None` when the other is too large, or endless.
    fn minus(self, other: Self) -> Option<Self> {
        Some(Self {
            events: self.events.checked_sub(other.events)?,
            bytes: self.bytes.checked_sub(other.bytes)?,
        })
    }
}

/// A list without some of its items.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spared {
    /// As long as it was, line by line.
    pub(super) text: String,
    /// The items that are not to be read: their content has changed.
    pub(super) items: BTreeSet<usize>,
}

/// Leaves out items of a `List`, in their order, for which the limit of aliases in the document has no room. `None` if
/// that leaves out nothing, or if the items alone cannot make the document fit.
pub(super) fn spare(text: &str, room: Size) -> Option<Spared> {
    if !text.contains('*') {
        return None;
    }
    let Walk {
        aliases, anchors, ..
    } = Walk::through(text)?;
    let mut sizes: BTreeMap<Option<usize>, Size> = BTreeMap::new();
    for alias in &aliases {
        let size = sizes.entry(alias.item).or_default();
        *size = size.plus(alias.size);
    }
    let mut room = room.minus(sizes.remove(&None).unwrap_or_default())?;
    let mut items = BTreeSet::new();
    for (item, size) in sizes {
        match room.minus(size) {
            Some(left) => room = left,
            None => items.extend(item),
        }
    }
    if items.is_empty() {
        return None;
    }
    let is_spared = |alias: &Alias| alias.item.is_some_and(|item| items.contains(&item));
    // The items that others refer to, and the ones that those refer to in turn.
    let mut needed: BTreeSet<usize> = BTreeSet::new();
    let others = aliases.iter().filter(|alias| !is_spared(alias));
    let mut unseen: Vec<usize> = others.filter_map(|alias| alias.anchor).collect();
    let mut is_kept = vec![false; aliases.len()];
    while let Some(anchor) = unseen.pop() {
        let Some(within) = anchors.get(&anchor).filter(|_| needed.insert(anchor)) else {
            continue;
        };
        for index in within.aliases.clone() {
            is_kept[index] = true;
            unseen.extend(aliases[index].anchor);
        }
    }
    let mut written = text.to_owned();
    for (alias, is_kept) in aliases.iter().zip(is_kept) {
        if is_spared(alias) && !is_kept {
            let empty = if alias.is_key { "\"\"" } else { "{}" };
            let length = alias.place.len();
            written.replace_range(alias.place.clone(), &format!("{empty:length$}"));
        }
    }
    Some(Spared {
        text: written,
        items,
    })
}

/// Aliases, and anchors, of a text that is looked through: those of a `List` of a whole cluster, in 10 MB each.
const MOST: usize = 1 << 17;

struct Alias {
    /// Of its star and its name, which has a letter at least.
    place: Range<usize>,
    /// In a map, in place of a key.
    is_key: bool,
    /// In which item of the list; `None` outside of all.
    item: Option<usize>,
    /// What it refers to; `None` where there is nothing, or where it is a part of that itself.
    anchor: Option<usize>,
    size: Size,
}

struct Anchor {
    size: Size,
    /// Those within it.
    aliases: Range<usize>,
}

/// A list or map that has begun.
struct Open {
    anchor: usize,
    size: Size,
    first_alias: usize,
    is_map: bool,
    /// Of a map: whether a key comes next.
    is_key: bool,
    /// The value of the document's key `items` comes next.
    is_before_items: bool,
    /// It is that value.
    is_items: bool,
}

#[derive(Default)]
struct Walk {
    open: Vec<Open>,
    aliases: Vec<Alias>,
    anchors: BTreeMap<usize, Anchor>,
    has_items: bool,
    /// How many items have begun.
    items: usize,
}

impl Walk {
    /// `None` where the text is no list, or cannot be parsed: where an item ends is then not known.
    fn through(text: &str) -> Option<Self> {
        let mut options = Options::default();
        options.emit_unresolved_aliases = true;
        options.set_emit_comments(false);
        let mut walk = Self::default();
        for event in Parser::new_from_str_with_options(text, options) {
            let (event, span) = event.ok()?;
            match event {
                Event::Scalar(value, _, anchor, _) => {
                    walk.begin_item();
                    if let [root] = &mut walk.open[..] {
                        root.is_before_items = root.is_map && root.is_key && value == "items";
                    }
                    let size = Size {
                        events: 1,
                        bytes: value.len(),
                    };
                    let at = walk.aliases.len();
                    walk.end(anchor, size, at);
                }
                Event::SequenceStart(_, anchor, _) => walk.begin(anchor, false)?,
                Event::MappingStart(_, anchor, _) => walk.begin(anchor, true)?,
                Event::SequenceEnd | Event::MappingEnd => {
                    let Open {
                        anchor,
                        size,
                        first_alias,
                        ..
                    } = walk.open.pop()?;
                    walk.end(anchor, size, first_alias);
                }
                Event::Alias(anchor) => walk.alias(span.byte_range()?, Some(anchor)),
                Event::UnresolvedAlias(_) => walk.alias(span.byte_range()?, None),
                _ => {}
            }
            if walk.aliases.len() > MOST || walk.anchors.len() > MOST {
                return None;
            }
        }
        walk.has_items.then_some(walk)
    }

    fn begin_item(&mut self) {
        if self.open.last().is_some_and(|open| open.is_items) {
            self.items += 1;
        }
    }

    /// `None` where a document has two lists of items.
    fn begin(&mut self, anchor: usize, is_map: bool) -> Option<()> {
        self.begin_item();
        let is_items = match &mut self.open[..] {
            [root] => !is_map && std::mem::take(&mut root.is_before_items),
            _ => false,
        };
        if is_items && std::mem::replace(&mut self.has_items, true) {
            return None;
        }
        self.open.push(Open {
            anchor,
            size: Size {
                events: 2,
                bytes: 0,
            },
            first_alias: self.aliases.len(),
            is_map,
            is_key: is_map,
            is_before_items: false,
            is_items,
        });
        Some(())
    }

    fn alias(&mut self, place: Range<usize>, anchor: Option<usize>) {
        self.begin_item();
        let known = anchor.and_then(|anchor| self.anchors.get(&anchor));
        let size = known.map_or(Size::ENDLESS, |known| known.size);
        let is_within_items = self.open.get(1).is_some_and(|open| open.is_items);
        self.aliases.push(Alias {
            place,
            is_key: self.open.last().is_some_and(|open| open.is_key),
            item: is_within_items.then(|| self.items - 1),
            anchor: anchor.filter(|_| size != Size::ENDLESS),
            size,
        });
        self.end(0, size, self.aliases.len());
    }

    /// A node is complete.
    fn end(&mut self, anchor: usize, size: Size, first_alias: usize) {
        if anchor != 0 {
            let aliases = first_alias..self.aliases.len();
            self.anchors.insert(anchor, Anchor { size, aliases });
        }
        if let Some(parent) = self.open.last_mut() {
            parent.size = parent.size.plus(size);
            parent.is_key = parent.is_map && !parent.is_key;
        }
    }
}
