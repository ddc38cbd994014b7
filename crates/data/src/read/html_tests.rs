use crate::read::tests::*;

const PAGE: &str = r#"<!DOCTYPE html>
<html><head><meta charset="utf-8"><title>A &amp; B</title>
<style>p { color: red }</style>
<script>if (a < b) { document.write("<p>no</p>"); }</script></head>
<body>
<h1>Tides</h1>
<p>The   moon
pulls <b>wat</b>er.<br>Twice a day.</p>
<ul><li>spring</li><li><p>neap</p><ul><li>weak</li></ul></ul>
FILL
<h2>Numbers</h2>
<table><tr><th>Place<th>Metres<tr><td>Fundy<td>16</table>
<pre>
  high  low
</pre>
<img src="a.png" alt="a map of tides">
<!-- not this -->
Caf&eacute; &lt;end&gt;
</body></html>
"#;

#[test]
fn text_is_what_the_page_shows() {
    let found = trails(&passages("a.html", filled(PAGE).as_bytes()));
    let expected = expected([
        (
            "A & B > Tides",
            "The moon pulls water.\nTwice a day.\n- spring\n- neap\n  - weak\n\nFILL",
        ),
        (
            "A & B > Tides > Numbers",
            "Place | Metres\nFundy | 16\n\n  high  low\n\na map of tides Café <end>",
        ),
    ]);
    assert_eq!(found, expected);
}

#[test]
fn bytes_and_lines_hold_the_words() {
    let page = filled(PAGE).repeat(30);
    for passage in passages("a.html", page.as_bytes()) {
        let slice = slice(page.as_bytes(), &passage).replace("&eacute;", "é");
        let lines = lines(page.as_bytes(), &passage).replace("&eacute;", "é");
        let mut rest = slice.as_str();
        for word in passage.text.split(|c: char| !c.is_alphanumeric()) {
            let word = if word == "water" { "wat" } else { word };
            let at = rest
                .find(word)
                .unwrap_or_else(|| panic!("{word:?} in {slice}"));
            rest = &rest[at + word.len()..];
            assert!(lines.contains(word));
        }
        assert!(slice.len() < 1000, "{slice}");
    }
}

#[test]
fn the_page_may_name_its_character_set() {
    let page = "<meta charset=\"windows-1251\"><p>Привет</p>";
    let (bytes, ..) = encoding_rs::WINDOWS_1251.encode(page);
    assert_eq!(passages("a.htm", &bytes)[0].text, "Привет");
}

#[test]
fn xhtml_may_close_elements_at_once() {
    let page = "<html xmlns='http://www.w3.org/1999/xhtml'><head><title/><script src='a'/></head>\
                <body><p>Text <![CDATA[with <signs>]]></p></body></html>";
    assert_eq!(
        passages("a.xhtml", page.as_bytes())[0].text,
        "Text with <signs>"
    );
}

#[test]
fn misnested_pages_lose_no_text() {
    let page = "<h1>Title<p>one<h2>Sub<div>two</h1></div></p><td>three</ul></pre></title>four";
    let words: Vec<_> = passages("a.html", page.as_bytes())
        .iter()
        .flat_map(|p| [p.headings.join(" "), p.text.clone()])
        .collect();
    let words = words.join(" ");
    for word in ["Title", "one", "Sub", "two", "three", "four"] {
        assert!(words.contains(word), "{word} in {words}");
    }
}

#[test]
fn an_unclosed_script_hides_only_itself() {
    let page = "<p>before</p><script>var a = '<p>no</p>';";
    assert_eq!(passages("a.html", page.as_bytes())[0].text, "before");
    // The end tag may carry attributes and any case.
    let page = "<script>x</sCRIPT a=b\n><p>after</p>";
    assert_eq!(passages("a.html", page.as_bytes())[0].text, "after");
    // Quotes hide the end of a tag, and a comment hides tags.
    let page = "<p title='>' data-x=\">\">one<!-- <p> --> two</p>";
    assert_eq!(passages("a.html", page.as_bytes())[0].text, "one two");
    assert_eq!(
        passages("a.html", b"a < b </> c <3 d")[0].text,
        "a < b c <3 d"
    );
}

#[test]
fn hostile_pages_are_read_in_linear_time() {
    let n = 200_000;
    let attributes: String = (0..n).map(|i| format!(" a{i}")).collect();
    let pages = [
        "<div>".repeat(50 * n) + "deep",
        "<".repeat(n) + "a",
        "<a ".repeat(n),
        "</".repeat(n),
        format!("<p{attributes}>text"),
        format!("<script>x</script{attributes}>text"),
        format!("</><p{attributes}>text"),
        format!("<!--x--><p{attributes}>text"),
        "<!--".repeat(n),
        "<p".to_string() + &"x".repeat(n),
        "&".repeat(n),
        "&#".repeat(n),
        "<script>".repeat(n),
        "<title>".repeat(n),
        "<li>".repeat(n) + "x",
        "<h1>".repeat(n) + "x",
        "<h1>x".repeat(n / 4),
        "<ul><li>x".repeat(n / 10),
        "<![CDATA[".repeat(n),
        "a<br>".repeat(n),
    ];
    for page in pages {
        let start = std::time::Instant::now();
        let result = read_file("a.html", page.as_bytes());
        println!("{:?} {:?}", page.get(..20), start.elapsed());
        assert!(result.is_ok() || matches!(result, Err(crate::ReadError::Skipped(_))));
    }
}
