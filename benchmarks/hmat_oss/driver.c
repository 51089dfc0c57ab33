/* hmat-oss on the kernel 1/r of a Fibonacci sphere with the diagonal 1: H-Cholesky with ACA+.
   usage: driver N EPSILON; prints "assemble factor solve error bytes" (seconds, and the relative error of x). */
#include <hmat/hmat.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double *points;

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + 1e-9 * now.tv_nsec;
}

static double entry(int i, int j) {
  const double *x = points + 3 * i, *y = points + 3 * j;
  double dx = x[0] - y[0], dy = x[1] - y[1], dz = x[2] - y[2];
  return i == j ? 1.0 : 1.0 / sqrt(dx * dx + dy * dy + dz * dz);
}

static void interaction(void *context, int i, int j, void *result) {
  (void)context;
  *(double *)result = entry(i, j);
}

static void place_on_sphere(size_t n) {
  for (size_t i = 0; i < n; i++) {
    double height = 1.0 - (2.0 * i + 1.0) / n, longitude = i * M_PI * (3.0 - sqrt(5.0));
    double ring = sqrt(1.0 - height * height), radius = sqrt(n);
    points[3 * i] = radius * ring * cos(longitude);
    points[3 * i + 1] = radius * ring * sin(longitude);
    points[3 * i + 2] = radius * height;
  }
}

int main(int argc, char **argv) {
  if (argc != 3) return fprintf(stderr, "usage: %s N EPSILON\n", argv[0]), 2;
  size_t n = strtoul(argv[1], NULL, 10);
  double epsilon = atof(argv[2]);
  points = malloc(3 * n * sizeof(double));
  place_on_sphere(n);
  double *x = malloc(n * sizeof(double)), *b = calloc(n, sizeof(double));
  srand(0);
  for (size_t i = 0; i < n; i++) x[i] = 2.0 * rand() / RAND_MAX - 1.0;
  for (size_t i = 0; i < n; i++)
    for (size_t j = 0; j < n; j++) b[i] += entry(i, j) * x[j];

  hmat_settings_t settings;
  hmat_get_parameters(&settings);
  settings.maxLeafSize = 100;
  hmat_set_parameters(&settings);
  hmat_interface_t hmat;
  hmat_init_default_interface(&hmat, HMAT_DOUBLE_PRECISION);
  if (hmat.init()) return fprintf(stderr, "hmat-oss does not start\n"), 1;

  double begin = seconds();
  hmat_clustering_algorithm_t *median = hmat_create_clustering_median();
  hmat_clustering_algorithm_t *clustering = hmat_create_clustering_max_dof(median, 100);
  hmat_cluster_tree_t *tree = hmat_create_cluster_tree(points, 3, n, clustering);
  hmat_admissibility_t *admissibility = hmat_create_admissibility_standard(2.0);
  hmat_matrix_t *matrix = hmat.create_empty_hmatrix_admissibility(tree, tree, 1, admissibility);
  hmat.set_low_rank_epsilon(matrix, epsilon);
  hmat_assemble_context_t assembly;
  hmat_assemble_context_init(&assembly);
  assembly.compression = hmat_create_compression_aca_plus(epsilon);
  assembly.simple_compute = interaction;
  assembly.lower_symmetric = 1;
  assembly.progress = NULL;
  hmat.assemble_generic(matrix, &assembly);
  double assembled = seconds();
  hmat_factorization_context_t factorization;
  hmat_factorization_context_init(&factorization);
  factorization.factorization = hmat_factorization_llt;
  factorization.progress = NULL;
  hmat.factorize_generic(matrix, &factorization);
  double factorized = seconds();
  hmat.vector_reorder(b, tree, 0, NULL, 1);
  hmat.solve_dense(matrix, b, 1);
  hmat.vector_restore(b, tree, 0, NULL, 1);
  double solved = seconds();

  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < n; i++) error += (b[i] - x[i]) * (b[i] - x[i]), norm += x[i] * x[i];
  hmat_info_t info;
  hmat.get_info(matrix, &info);
  printf("%.6f %.6f %.6f %.3e %zu\n", assembled - begin, factorized - assembled, solved - factorized,
         sqrt(error / norm), info.compressed_size * sizeof(double));
  return 0;
}
