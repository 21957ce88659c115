{{- define "rabbit2docker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Short enough for the suffix "-docker-api" within 63 characters. */}}
{{- define "rabbit2docker.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rabbit2docker.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rabbit2docker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rabbit2docker.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "rabbit2docker.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "rabbit2docker.dockerApiLabels" -}}
{{ include "rabbit2docker.selectorLabels" . }}
app.kubernetes.io/component: docker-api
{{- end }}

{{- define "rabbit2docker.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "rabbit2docker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "rabbit2docker.image" -}}
{{- printf "%s:%s" (required "image.repository is not set. Build the image with the Dockerfile, push it, and set its name." .Values.image.repository) (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}

{{- /* A directory name on nodes that is unique to the release. The path of a socket may have up to 107 bytes. */}}
{{- define "rabbit2docker.nodeDirectory" -}}
{{- $name := printf "%s-%s" .Release.Namespace (include "rabbit2docker.fullname" .) }}
{{- if gt (len $name) 60 }}
{{- printf "%s-%s" ($name | trunc 40 | trimSuffix "-") ($name | sha256sum | trunc 10) }}
{{- else }}
{{- $name }}
{{- end }}
{{- end }}

{{- define "rabbit2docker.socketDirectory" -}}
{{- default (printf "/var/run/rabbit2docker/%s" (include "rabbit2docker.nodeDirectory" .)) .Values.dockerApi.socketDirectory | trimSuffix "/" }}
{{- end }}

{{- define "rabbit2docker.socket" -}}
{{ include "rabbit2docker.socketDirectory" . }}/docker.sock
{{- end }}

{{- /* Non-empty if builds get Secrets of their own. */}}
{{- define "rabbit2docker.perBuildSecrets" -}}
{{- range $tenant, $has := .Values.tenantCredentials }}
{{- if ($has).gitCredentials }}true{{ end }}
{{- end }}
{{- end }}

{{- /* Fails if `config` contains a setting that the chart sets, or a password. */}}
{{- define "rabbit2docker.checkConfig" -}}
{{- $forbidden := dict
  "executor" "the chart always uses the kubernetes executor"
  "amqp.url" "put it into a Secret, and set amqp.existingSecret to the name of the Secret"
  "amqp.management_url" "put it into the Secret amqp.existingSecret, and set amqp.managementUrlKey to its key"
  "providers.github_token" "put it into a Secret, and set githubToken.existingSecret to the name of the Secret"
  "hub" "the chart does not run `rabbit2docker hub`"
  "http.bind" "set service.port"
  "docker.host" "builds use the docker-api on their node"
  "kubernetes.namespace" "builds run in the namespace of the release"
  "kubernetes.kubeconfig" "the consumer uses its service account"
  "kubernetes.context" "the consumer uses its service account"
  "kubernetes.push_secret" "set pushSecret"
  "kubernetes.tenants" "set tenantCredentials"
}}
{{- if .Values.dockerApi.enabled }}
{{- $_ := set $forbidden "kubernetes.docker_socket" "set dockerApi.socketDirectory" }}
{{- $_ := set $forbidden "kubernetes.docker_api_labels" "the chart uses the labels of its own docker-api" }}
{{- $_ := set $forbidden "kubernetes.docker_group" "set dockerApi.group" }}
{{- end }}
{{- if .Values.pushSecret }}
{{- $_ := set $forbidden "docker.config" "the chart mounts pushSecret there" }}
{{- end }}
{{- $config := .Values.config }}
{{- range $path, $instead := $forbidden }}
{{- $group := $config }}
{{- $keys := splitList "." $path }}
{{- range initial $keys }}
{{- $group = get (default dict $group) . | default dict }}
{{- end }}
{{- if hasKey $group (last $keys) }}
{{- fail (printf "config.%s cannot be set: %s." $path $instead) }}
{{- end }}
{{- end }}
{{- if not .Values.dockerApi.enabled }}
{{- range list "docker_socket" "docker_api_labels" }}
{{- if not (get (default dict $config.kubernetes) .) }}
{{- fail (printf "config.kubernetes.%s is not set. It is required if dockerApi.enabled is false." .) }}
{{- end }}
{{- end }}
{{- end }}
{{- if not (get (default dict $config.images) "prefix") }}
{{- fail "config.images.prefix is not set. It names the registry to push to, such as registry.example.org/hub/r2d-." }}
{{- end }}
{{- end }}

{{- /* The settings of the consumer: `config`, and those derived from other values. */}}
{{- define "rabbit2docker.settings" -}}
{{- include "rabbit2docker.checkConfig" . }}
{{- $kubernetes := dict "namespace" .Release.Namespace }}
{{- if .Values.dockerApi.enabled }}
{{- $_ := set $kubernetes "docker_socket" (include "rabbit2docker.socket" .) }}
{{- $_ := set $kubernetes "docker_api_labels" (include "rabbit2docker.dockerApiLabels" . | fromYaml) }}
{{- $_ := set $kubernetes "docker_group" (int .Values.dockerApi.group) }}
{{- with .Values.dockerApi.tolerations }}
{{- $_ := set $kubernetes "tolerations" . }}
{{- end }}
{{- end }}
{{- $ours := dict "executor" "kubernetes" "http" (dict "bind" "0.0.0.0:8090") "kubernetes" $kubernetes }}
{{- with .Values.pushSecret }}
{{- $_ := set $kubernetes "push_secret" . }}
{{- $_ := set $ours "docker" (dict "config" "/etc/rabbit2docker/docker") }}
{{- end }}
{{- $tenants := dict }}
{{- range $tenant, $has := .Values.tenantCredentials }}
{{- with ($has).pushSecret }}
{{- $_ := set $tenants $tenant (dict "push_secret" .) }}
{{- end }}
{{- end }}
{{- if $tenants }}
{{- $_ := set $kubernetes "tenants" $tenants }}
{{- end }}
{{- /* `config` takes precedence over the defaults of the chart. */}}
{{- mergeOverwrite (dict "instance" .Release.Name) $ours (deepCopy .Values.config) | toYaml }}
{{- end }}

{{- /* dockerd's daemon.json. Engines before 28 only support defaultKeepStorage, later ones also an upper limit. */}}
{{- define "rabbit2docker.daemonConfig" -}}
{{- $size := .Values.dockerApi.buildCache }}
{{- $gc := dict "enabled" true "defaultKeepStorage" $size "defaultMaxUsedSpace" $size }}
{{- $config := dict "builder" (dict "gc" $gc) }}
{{- with .Values.dockerApi.insecureRegistries }}
{{- $_ := set $config "insecure-registries" . }}
{{- end }}
{{- mergeOverwrite $config (deepCopy .Values.dockerApi.daemonConfig) | toPrettyJson }}
{{- end }}

{{- /* Security contexts that the Pod Security Standard `restricted` requires. */}}
{{- define "rabbit2docker.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "rabbit2docker.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "rabbit2docker.removalHook" -}}
helm.sh/hook: post-delete
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
