//! Divergences against the authors' functions, gradients against PyTorch's.

use keyfold_predict::Table;
use keyfold_predict::cauchy_schwarz::divergence::{
    Sigma, cs_conditional_gradient, cs_qmi, cs_qmi_normalised_gradient,
};

use super::{close, fixture, numbers, table};

#[test]
fn divergences_and_gradients_are_the_authors() {
    let all = fixture("cauchy_schwarz");
    let (x, code): (Table, Table) = (table(&all["x"]), table(&all["code"]));
    let (y, told) = (numbers(&all["y"]), numbers(&all["told"]));
    let one = Sigma::Fixed(1.0);
    let number = |name: &str| all[name].as_f64().unwrap();
    let (value, gradient) = cs_conditional_gradient(&x, &y, &told, one).unwrap();
    close("conditional", &[value], &[number("conditional")], 1e-10);
    close(
        "its gradient",
        &gradient,
        &numbers(&all["conditional_gradient"]),
        1e-9,
    );
    for (name, sigma) in [
        ("qmi", one),
        ("qmi_two", Sigma::Fixed(2.0)),
        ("qmi_median", Sigma::Median),
    ] {
        let value = cs_qmi(&x, &code, sigma).unwrap();
        // Of the median's wide kernels little more than rounding is left.
        assert!((value - number(name)).abs() < 1e-10, "{name}: {value}");
    }
    let (value, gradient) = cs_qmi_normalised_gradient(&x, &code, one).unwrap();
    close("normalised", &[value], &[number("normalised")], 1e-9);
    close(
        "its gradient",
        &gradient,
        &numbers(&all["normalised_gradient"]),
        1e-8,
    );
    // The released script's targets of one axis: squared errors.
    let squares: f64 = y.iter().zip(&told).map(|(y, t)| (y - t).powi(2)).sum();
    let want = squares / std::f64::consts::LN_2;
    close("released", &[want], &[number("released")], 1e-10);
}
