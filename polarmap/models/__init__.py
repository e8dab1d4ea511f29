"""The machine learning models behind `polarmap.glm`, `polarmap.convex` and `polarmap.convexnn`.

Every product of a model with its training data X is computed by workers, without waiting for stragglers
(`polarmap.linalg.CodedOperator`). The modules in `estimators` follow scikit-learn: an estimator scales the
features and chooses a loss and a penalty. The modules in `solvers` minimize the sum of both. A solver never
reads X itself. It only needs products X v and X' u and, in some cases, Gram matrices X' diag(w) X.
"""
