use crate::read::tests::*;

const MAIL: &str = "\
From: =?utf-8?q?Ren=C3=A9?= Dupont <rene@example.org>\r
To: Ada <ada@example.org>, bob@example.org\r
Subject: =?iso-8859-1?Q?Caf=E9?= on Monday\r
Date: Mon, 1 Jan 2024 12:00:00 +0100\r
MIME-Version: 1.0\r
Content-Type: multipart/mixed; boundary=\"xx\"\r
\r
--xx\r
Content-Type: multipart/alternative; boundary=\"yy\"\r
\r
--yy\r
Content-Type: text/plain; charset=windows-1252\r
Content-Transfer-Encoding: quoted-printable\r
\r
Shall we meet at the caf=E9?\r
\r
> I would like to.\r
--yy\r
Content-Type: text/html\r
\r
<p>Shall we <b>not</b></p>\r
--yy--\r
--xx\r
Content-Type: application/pdf; name=\"menu.pdf\"\r
Content-Disposition: attachment; filename=\"menu.pdf\"\r
Content-Transfer-Encoding: base64\r
\r
JVBERi0=\r
--xx--\r
";

#[test]
fn a_mail_is_its_headers_its_text_and_the_names_of_its_attachments() {
    let passages = passages("a.eml", MAIL.as_bytes());
    assert_eq!(passages.len(), 1);
    assert_eq!(passages[0].headings, ["Café on Monday"]);
    let date = "Date: Mon, 1 Jan 2024 12:00:00 +0100";
    let expected = format!(
        "From: René Dupont <rene@example.org>\nTo: Ada <ada@example.org>, bob@example.org\n{date}\n\n\
         Shall we meet at the café?\n\n> I would like to.\n\nAttachments: menu.pdf"
    );
    assert_eq!(passages[0].text, expected);
}

#[test]
fn the_place_of_a_long_mail_is_its_part() {
    let text = "These are words of the mail. ".repeat(100);
    let mail = MAIL.replace("Shall we meet at the caf=E9?", &text);
    let passages = passages("a.eml", mail.as_bytes());
    let middle = &passages[1];
    assert!(middle.text.starts_with("These are words"));
    assert!(slice(mail.as_bytes(), middle).starts_with("These are words"));
    assert_eq!(middle.lines.start, 15);
}

#[test]
fn html_is_read_where_there_is_no_text() {
    let mail = "Subject: News\nContent-Type: text/html\n\n<h1>Big</h1><p>Some <i>news</i>.</p>";
    let passages = passages("a.eml", mail.as_bytes());
    assert_eq!(passages[0].headings, ["News", "Big"]);
    assert_eq!(passages[0].text, "Some news.");
}

#[test]
fn a_box_gives_its_messages_by_number() {
    let mbox = "From a@b Mon Jan  1 12:00:00 2024\nSubject: One\n\nFirst text.\nFrom here on 10:00.\n\n\
                From c@d Tue Jan  2 12:00:00 2024\nFrom: c@d\n\nSecond text.\n\n\
                From e@f Wed Jan  3 12:00:00 2024\nSubject: One\n\nThird text.\n";
    for name in ["a.mbox", "Inbox"] {
        let passages = passages(name, mbox.as_bytes());
        let found: Vec<_> = passages
            .iter()
            .map(|p| {
                (
                    p.part,
                    p.headings.join(" "),
                    p.text.as_str(),
                    p.lines.clone(),
                )
            })
            .collect();
        let expected = [
            (
                Some(1),
                "One".into(),
                "First text.\nFrom here on 10:00.",
                4..6,
            ),
            (Some(2), String::new(), "From: c@d\n\nSecond text.", 8..11),
            (Some(3), "One".into(), "Third text.", 15..16),
        ];
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(
                (found.0, &found.1, found.2),
                (expected.0, &expected.1, expected.2)
            );
            assert!(found.3.start <= expected.3.start && found.3.end >= expected.3.end);
        }
        assert_eq!(found.len(), 3);
    }
    let document = read_file("Inbox", mbox.as_bytes()).unwrap();
    assert_eq!(document.format.to_string(), "mbox");
}

#[test]
fn a_box_without_a_from_line_fails() {
    let line = failed(read_file("a.mbox", b"Subject: x\n\ntext"));
    assert!(line.contains("does not begin with a From line"), "{line}");
}

#[test]
fn older_character_sets_and_no_headers() {
    let mail = b"Subject: x\nContent-Type: text/plain; charset=iso-8859-1\n\ncaf\xe9\n";
    assert_eq!(passages("a.eml", mail)[0].text, "café");
    skipped(read_file("a.eml", b"\n"));
}

#[test]
fn hostile_mails_end() {
    let n = 100_000;
    let nested = "Content-Type: message/rfc822\n\n".repeat(n) + "Subject: x\n\ntext";
    assert!(failed(read_file("a.eml", nested.as_bytes())).contains("parts"));
    let nested = "Content-Type: message/rfc822\n\n".repeat(1000) + "Subject: x\n\ntext";
    assert!(failed(read_file("a.eml", nested.as_bytes())).contains("mails in it"));
    let multiparts = "Content-Type: multipart/mixed; boundary=zz\n\n--zz\n".repeat(n);
    assert!(failed(read_file("a.eml", multiparts.as_bytes())).contains("parts"));
    let boundary = format!(
        "Content-Type: multipart/mixed; boundary={}\n\n",
        "-".repeat(n)
    );
    failed(read_file("a.eml", (boundary + &"-".repeat(n)).as_bytes()));

    let multipart = |i: usize| format!("Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n");
    let mails = [
        (0..5000).map(multipart).collect::<String>() + "\ntext",
        "Subject: x\n\n".to_string() + &">".repeat(n),
        "Subject: x\n\n".to_string()
            + &(0..2000)
                .map(|i| ">".repeat(i) + " a\n")
                .collect::<String>(),
        format!("Subject: {}\n\ntext", "=?utf-8?q?a?= ".repeat(n)),
        format!("Subject: {}\n\ntext", "=?".repeat(n)),
        format!("To: {}\n\ntext", "a@b,".repeat(n)),
        format!("To: {}\n\ntext", "<(\"".repeat(n)),
        format!(
            "Subject: x\nContent-Type: text/plain{}\n\ntext",
            ";a=b".repeat(n)
        ),
        "A: b\n".repeat(n) + "\ntext",
        "A".repeat(n),
        ":".repeat(n),
        "Subject: x\nContent-Transfer-Encoding: base64\n\n".to_string() + &"====".repeat(n),
        "Subject: x\nContent-Transfer-Encoding: quoted-printable\n\n".to_string() + &"=".repeat(n),
    ];
    for mail in mails {
        let start = std::time::Instant::now();
        let _ = read_file("a.eml", mail.as_bytes());
        println!("{:?} {:?}", mail.get(..30), start.elapsed());
        let mbox = format!("From a@b Mon Jan  1 12:00:00 2024\n{mail}");
        let _ = read_file("a.mbox", mbox.as_bytes());
    }
    let empty = "From a@b Mon Jan  1 12:00:00 2024\n\n".repeat(n);
    skipped(read_file("a.mbox", empty.as_bytes()));
}
