use crate::read::tests::*;

#[test]
fn a_row_is_a_passage_of_names_and_values() {
    let file = "\u{feff}City;Country;Note\r\nPraha;Czechia;\"on the\r\nVltava; \"\"golden\"\"\"\r\n\r\nOslo;Norway\r\nRome;;x;y";
    let passages = passages("a.csv", file.as_bytes());
    let texts: Vec<_> = passages.iter().map(|p| p.text.as_str()).collect();
    let expected = [
        "City: Praha\nCountry: Czechia\nNote: on the Vltava; \"golden\"",
        "City: Oslo\nCountry: Norway",
        "City: Rome\nNote: x\ncolumn 4: y",
    ];
    assert_eq!(texts, expected);
    assert_eq!(
        passages.iter().map(|p| p.part).collect::<Vec<_>>(),
        [Some(1), Some(2), Some(3)]
    );
    let places: Vec<_> = passages.iter().map(|p| p.lines.clone()).collect();
    assert_eq!(places, [2..4, 5..6, 6..7]);
    assert_eq!(
        slice(file.as_bytes(), &passages[1]).trim_end(),
        "Oslo;Norway"
    );
}

#[test]
fn rows_without_names_are_numbered() {
    let texts = |name: &str, file: &str| -> Vec<String> {
        passages(name, file.as_bytes())
            .into_iter()
            .map(|p| p.text)
            .collect()
    };
    assert_eq!(
        texts("a.tsv", "1\ta, b\n2\tc\n"),
        ["column 1: 1\ncolumn 2: a, b", "column 1: 2\ncolumn 2: c"]
    );
    assert_eq!(
        texts("a.csv", "one,two\n"),
        ["column 1: one\ncolumn 2: two"]
    );
}

#[test]
fn a_large_row_is_cut_between_its_values() {
    let file = format!("name,text\nx,\"{}\"\n", "Some words of it. ".repeat(100));
    let passages = passages("a.csv", file.as_bytes());
    assert!(passages.len() > 2);
    assert!(
        passages
            .iter()
            .all(|p| p.part == Some(1) && p.lines == (2..3))
    );
}

#[test]
fn hostile_tables_end() {
    let n = 200_000;
    let tables = [
        ",".repeat(n) + "\n" + &",".repeat(n) + "x",
        "a".repeat(n) + "\n" + &"x\n".repeat(n / 10),
        "\"".to_string() + &"a,b\n".repeat(n),
        "\"\"".repeat(n),
        (0..n).map(|i| format!("c{i},")).collect::<String>() + "z\n" + &"1,".repeat(n),
    ];
    for table in tables {
        assert!(read_file("a.csv", table.as_bytes()).is_ok());
    }
}
