//! Naive Bayes against the authors' class and scikit-learn's, logistic regression against
//! scikit-learn's.

use keyfold_core::NoProgress;
use keyfold_predict::logistic::{Logistic, LogisticConfig};
use keyfold_predict::naive_bayes::{NaiveBayes, NaiveBayesConfig, Variances};
use keyfold_predict::{Classifier, Labels};

use super::{close, fixture, names, numbers, table};

#[test]
fn naive_bayes_is_the_authors() {
    let all = fixture("heads");
    let (x, test, want) = (table(&all["x"]), table(&all["test"]), &all["shared"]);
    let labels = Labels::new(&names(&all["y"]));
    let model = NaiveBayes::fit(&x, &labels, &NaiveBayesConfig::reference()).unwrap();
    close("means", model.means(), &numbers(&want["means"]), 1e-12);
    let variances = model.variances();
    close("variances", &variances, &numbers(&want["variances"]), 1e-12);
    let told = model.predict(&test).unwrap();
    let told: Vec<f64> = told.into_iter().map(|c| c as f64).collect();
    assert_eq!(told, numbers(&want["predicted"]));
    assert_eq!(told, numbers(&want["halves"]));
}

#[test]
fn with_variances_of_each_class_it_is_scikit_learns() {
    let all = fixture("heads");
    let want = &all["quadratic"];
    let config = NaiveBayesConfig {
        variances: Variances::PerClass,
        ..Default::default()
    };
    let labels = Labels::new(&names(&all["y"]));
    let model = NaiveBayes::fit(&table(&all["x"]), &labels, &config).unwrap();
    let variances = model.variances();
    close("variances", &variances, &numbers(&want["variances"]), 1e-12);
    let told = model.predict_proba(&table(&all["test"])).unwrap();
    close("probabilities", &told, &numbers(&want["proba"]), 1e-9);
}

#[test]
fn logistic_regression_has_scikit_learns_minimum() {
    for case in fixture("heads")["logistic"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (x, labels) = (table(&case["x"]), Labels::new(&names(&case["y"])));
        let config = LogisticConfig {
            c: case["c"].as_f64().unwrap(),
            tol: 1e-10,
            ..Default::default()
        };
        let model = Logistic::fit(&x, &labels, &config, &NoProgress).unwrap();
        assert!(
            model.told().stopped.is_converged(),
            "{name}: {:?}",
            model.told()
        );
        let linear = model.linear();
        close(name, &linear.coef, &numbers(&case["coef"]), 1e-6);
        close(name, &linear.intercept, &numbers(&case["intercept"]), 1e-5);
        let rows: Vec<usize> = (0..10.min(x.rows())).collect();
        let told = model.predict_proba(&x.select(&rows)).unwrap();
        close(name, &told, &numbers(&case["proba"]), 1e-6);
    }
}
