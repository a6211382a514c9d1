//! What YAML writes once and means often.

use super::*;

#[test]
fn aliases_are_followed_but_do_not_multiply() {
    let text = "apiVersion: v1\nkind: Node\nmetadata: {name: &n a, labels: {l: *n}}\n";
    assert_eq!(objects(&yaml(text)), ["Node /a in 1"]);
    let mut bomb = String::from(
        "kind: Node\nmetadata:\n  labels:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n",
    );
    for level in 1..9 {
        let alias = format!("*a{}", level - 1);
        writeln!(
            bomb,
            "    a{level}: &a{level} [{}]",
            vec![alias; 10].join(", ")
        )
        .unwrap();
    }
    assert_eq!(yaml(&bomb).rejections.len(), 1);
    // Each of them costs its own document, wherever it stands.
    let good = |name: &str| format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\n");
    let bombs = vec![bomb; 3].join("---\n");
    let decoded = yaml(&[good("a"), bombs, good("b")].join("---\n"));
    assert_eq!(objects(&decoded), ["Node /a in 1", "Node /b in 5"]);
    let sources = decoded.rejections.iter().map(|r| r.source.as_str());
    assert_eq!(
        sources.collect::<Vec<_>>(),
        ["web.yaml#2", "web.yaml#3", "web.yaml#4"]
    );
}

/// What is done to an item of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    /// Its aliases multiply.
    Bomb,
    /// As a key, where the parser takes a word only.
    BombAsKey,
    /// It refers to an anchor that is not there.
    Nowhere,
    /// It refers to itself.
    Itself,
    /// All of it is an alias of an item to which something was done.
    Again,
}

/// An item that shares the ports of the first one, one of which is an alias there, and has an anchor of its own,
/// whatever is done to it. `borrowed` is the item whose anchor it refers to.
fn shared_item(index: usize, deed: Deed, borrowed: Option<usize>, is_flow: bool) -> String {
    let levels = || {
        let level = |level: usize| match level {
            0 => format!("l0: &b{index}x0 [x, x, x, x, x, x, x, x, x, x]"),
            _ => {
                let lower = vec![format!("*b{index}x{}", level - 1); 10];
                format!("l{level}: &b{index}x{level} [{}]", lower.join(", "))
            }
        };
        (0..9).map(level).collect::<Vec<_>>().join(", ")
    };
    let done = match deed {
        Deed::Nothing => String::new(),
        Deed::Bomb => format!(", done: {{{}}}", levels()),
        Deed::BombAsKey => format!(", done: {{{}, *b{index}x8 : x}}", levels()),
        Deed::Nowhere => format!(", done: *nowhere{index}"),
        Deed::Itself => format!(", done: &self{index} [*self{index}]"),
        Deed::Again => return format!("- *item{}\n", borrowed.unwrap()),
    };
    let ports = match index {
        0 => "&ports [*port, {name: b, port: 81}]",
        _ => "*ports",
    };
    let port = match index {
        0 => ", first: &port {name: a, port: 80}",
        _ => "",
    };
    let keys = borrowed.map_or("kubernetes.io/hostname".to_owned(), |other| {
        format!("*own{other}")
    });
    let metadata = format!(
        "{{name: web-{index}, namespace: default, mine: &own{index} openyurt.io/nodepool{port}, annotations: {{openyurt.io/topologyKeys: {keys}}}{done}}}"
    );
    let spec = format!("{{clusterIP: 10.96.0.{index}, ports: {ports}}}");
    let fields = [
        "apiVersion: v1".to_owned(),
        "kind: Service".to_owned(),
        format!("metadata: {metadata}"),
        format!("spec: {spec}"),
    ];
    match is_flow {
        true => format!("- &item{index} {{{}}}\n", fields.join(", ")),
        false => format!("- &item{index}\n  {}\n", fields.join("\n  ")),
    }
}

/// Numbers of the items that cannot be read, as their rejections name them.
fn refused_items(decoded: &Decoded) -> Vec<usize> {
    let number = |rejection: &Rejection| {
        let (_, rest) = rejection.reason.split_once("items[")?;
        rest.split_once(']')?.0.parse().ok()
    };
    let all = decoded.rejections.iter();
    all.map(|rejection| number(rejection).unwrap_or_else(|| panic!("{rejection:?}")))
        .collect()
}

proptest! {
    #![proptest_config(crate::cases::cases(16))]

    #[test]
    fn whatever_aliases_of_one_item_do_the_others_are_read(
        done in prop::collection::vec(
            (prop::sample::select(vec![
                Deed::Nothing, Deed::Nothing, Deed::Nothing, Deed::Bomb, Deed::BombAsKey, Deed::Nowhere, Deed::Itself, Deed::Again,
            ]), any::<prop::sample::Index>(), any::<bool>(), any::<bool>()),
            1..12,
        ),
        is_kind_last in any::<bool>(),
    ) {
        let mut deeds: Vec<Deed> = Vec::new();
        let (mut text, mut tame) = (String::from("items:\n"), String::from("items:\n"));
        for (index, (deed, other, borrows, is_flow)) in done.into_iter().enumerate() {
            // One that is all of a good one is that one once more, and not what this is about.
            let bad: Vec<usize> = (0..index)
                .filter(|&other| !matches!(deeds[other], Deed::Nothing | Deed::Again))
                .collect();
            let (deed, other) = match deed {
                Deed::Again if bad.is_empty() => (Deed::Nothing, None),
                Deed::Again => (deed, Some(bad[other.index(bad.len())])),
                _ => {
                    // Its own labels are defined by an item that is an object.
                    let all: Vec<usize> = (0..index).filter(|&other| deeds[other] != Deed::Again).collect();
                    (deed, (borrows && !all.is_empty()).then(|| all[other.index(all.len())]))
                }
            };
            deeds.push(deed);
            text += &shared_item(index, deed, other, is_flow);
            if deed == Deed::Again {
                tame += "- null\n";
            } else {
                tame += &shared_item(index, Deed::Nothing, other, is_flow);
            }
        }
        let head = "apiVersion: v1\nkind: List\n";
        let document = |items: &str| match is_kind_last {
            true => format!("{items}{head}"),
            false => format!("{head}{items}"),
        };
        let names = |index: &usize| format!("web-{index}");
        let bad: Vec<usize> = (0..deeds.len()).filter(|&index| deeds[index] != Deed::Nothing).collect();
        let bad_names: Vec<String> = bad.iter().map(names).collect();
        let expected: Vec<Object> = yaml(&document(&tame)).objects.into_iter()
            .map(|located| located.object)
            .filter(|object| !bad_names.iter().any(|name| *name == *object.name().name))
            .collect();
        let decoded = yaml(&document(&text));
        prop_assert_eq!(refused_items(&decoded), bad, "{}", text);
        let objects: Vec<Object> = decoded.objects.into_iter().map(|located| located.object).collect();
        prop_assert_eq!(objects, expected, "{}", text);
    }
}

#[test]
fn items_have_the_room_of_aliases_in_turn_and_one_that_has_none_says_so() {
    // 65,536 and a multiple of it: the third has no room any more, and the fourth needs little.
    let item = |name: &str, times: usize| {
        let all = vec!["*a"; times].join(", ");
        format!("- {{apiVersion: v1, kind: Node, metadata: {{name: {name}}}, more: [{all}]}}\n")
    };
    let anchor = vec!["x"; 1 << 10].join(", ");
    let mut text = format!("kind: List\nanchor: &a [{anchor}]\nitems:\n");
    for (name, times) in [("a", 100), ("b", 100), ("c", 100), ("d", 40)] {
        text += &item(name, times);
    }
    let decoded = yaml(&text);
    assert_eq!(
        objects(&decoded),
        ["Node /a in 1", "Node /b in 1", "Node /d in 1"]
    );
    assert_eq!(refused_items(&decoded), [2]);
    // Outside of the items, it is the document's.
    let text = text.replace(
        "items:",
        &format!("more: [{}]\nitems:", vec!["*a"; 300].join(", ")),
    );
    let decoded = yaml(&text);
    assert_eq!((decoded.objects.len(), decoded.rejections.len()), (0, 1));
    assert!(!decoded.rejections[0].reason.contains("items["));
}

/// As PyYAML writes a list that objects share.
#[test]
fn a_list_whose_items_share_a_list_is_read() {
    for services in [200, 10_000] {
        let mut text = String::from("apiVersion: v1\nkind: List\nitems:\n");
        for index in 0..services {
            let ports = match index {
                0 => {
                    "&id001\n    - {name: http, port: 80}\n    - {name: https, port: 443}\n    - {name: dns, port: 53, protocol: UDP}"
                }
                _ => "*id001",
            };
            writeln!(
                text,
                "- apiVersion: v1\n  kind: Service\n  metadata:\n    name: web-{index}\n    namespace: default\n  \
                 spec:\n    clusterIP: 10.96.{}.{}\n    type: ClusterIP\n    ports: {ports}",
                index / 256,
                index % 256
            )
            .unwrap();
        }
        let decoded = yaml(&text);
        assert_eq!(decoded.rejections, []);
        assert_eq!(decoded.objects.len(), services);
    }
}
